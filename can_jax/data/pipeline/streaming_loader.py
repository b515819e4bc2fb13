"""A loader that streams shards sequentially, for data without an index.

It reads compressed shards and remote stores with slow random access. Its guarantees are weaker than
those of the indexed order:

- In each epoch, a process reads each of its shards once, in a new order. Processes divide shards,
  not examples: a process with smaller shards begins its next epoch earlier.
- Examples are shuffled within windows of `data.window` examples. A window takes turns among
  `data.shards_at_once` shards, so that shards of one class each are mixed.
- A run resumed with the same number of processes sees the same stream as without the interruption.
  With another number, each process starts at the beginning of the next epoch, and logs it.
- An image that cannot be decoded is replaced by the next image of its chunk or its window.
"""

import itertools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from can_jax.data.pipeline import chunks
from can_jax.data.pipeline.training_loader import Loader, States
from can_jax.data.pipeline.turns import Record, in_turns
from can_jax.data.pipeline.views import RandomViews
from can_jax.data.sources.base import Fingerprint
from can_jax.data.sources.registry import SOURCES
from can_jax.data.sources.shard_reader import Read
from can_jax.data.sources.shards import FIRST_RECORDS
from can_jax.data.storage.digest import digest_of_columns, digest_of_names
from can_jax.data.storage.files import Names, shard_sizes
from can_jax.data.storage.splits import shown
from can_jax.distributed.process_slice import ProcessSlice, slice_of_process
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import tensorflow

# The position of a process: epoch, index in the epoch of the first of the shards that it reads
# together, index among their records at which the window begins, and the number of examples of the
# window already used.
Place = Int[np.ndarray, "4"]
START = (0, 0, 0, 0)
SPARES = 16  # the minimum number of substitutes for a broken image, if the window has as many
NOTHING = 2**30  # the `attempt` of a row if no image of its chunk can be decoded


# The place of a record: the first of the shards read together, its index among their records, and
# the index of its shard; and the record.
Windowed = tuple[int, int, int, Record]


class Streamed(NamedTuple):
    """An example of a stream.

    Attributes:
        image, label, name: The encoded image, its label, and its place for messages.
        place: The `Place` after it.
        window: The records of its window, in the order in which they were read.
    """

    image: bytes
    label: int
    name: str
    place: tuple[int, ...]
    window: list[Windowed]


class ShardStream:
    """A source that can only be read sequentially.

    Args:
        paths: The paths of the shards.
        read: A function that yields the encoded images and labels of a shard.
        examples: The approximate number of examples, which defines the length of an epoch.
        at_once: The number of shards that are read at the same time.
    """

    labels = None
    parts = ()

    def __init__(self, paths: list[str], read: Read, examples: int, at_once: int = 1):
        self.paths, self._read, self.examples, self._at_once = paths, read, examples, at_once

    def stream(
        self, seed: int, window: int, process: int, processes: int, place: tuple[int, ...]
    ) -> Iterator[Streamed]:
        """Yield examples forever, each with the position after it.

        Args:
            seed: The seed of the order of shards and of the shuffling.
            window: The number of examples in a shuffle window.
            process, processes: The index of this process, and the number of processes.
            place: The position at which to start.

        Raises:
            UserError: No shard yields an image any more, for example because its store was removed.
        """
        epoch, shard, record, taken = place
        barren: set[str] = set()  # shards that were read since the last image
        for epoch in itertools.count(epoch):  # noqa: B020
            order = np.random.default_rng([seed, epoch]).permutation(len(self.paths))
            mine = [self.paths[j] for j in order[process::processes]]
            barren.update([] if shard or record or taken else mine)
            records = self._from(mine, shard, record)
            while batch := list(itertools.islice(records, window)):
                shard, record, *_ = batch[0]
                shuffle = np.random.default_rng([seed, epoch, shard, record])
                shuffled = shuffle.permutation(len(batch)).tolist()
                for i, j in enumerate(shuffled[taken:], taken):
                    *_, where, (_, which, image, label) = batch[j]
                    # TensorFlow takes UTF-8 only.
                    name = f"{shown(mine[where])}, record {which}"
                    barren = barren if not image else set()
                    yield Streamed(image, label, name, (epoch, shard, record, i + 1), batch)
                taken = 0
            shard, record, taken = 0, 0, 0
            if len(barren) == len(self.paths):
                raise UserError(
                    f"no image in any of {len(barren)} shards any more, such as {shown(mine[0])}; "
                    "warnings above say why"
                )

    def fingerprint(self) -> Fingerprint:
        """Return digests of the names and sizes of the shards."""
        root = os.path.commonpath([os.path.dirname(path) for path in self.paths])
        names = Names.of([os.path.relpath(path, root) for path in self.paths])
        sizes = digest_of_columns(shard_sizes(self.paths))
        return {"names": digest_of_names(names), "sizes": sizes}

    def _from(self, paths: list[str], shard: int, record: int) -> Iterator[Windowed]:
        """Yield the records from a position to the end of the shards.

        Args:
            paths: The paths of the process's shards.
            shard: The index of the first of the shards that are read together.
            record: The index among their records.
        """
        for first in range(shard, len(paths), self._at_once):
            together = in_turns(self._read, paths[first : first + self._at_once])
            for index, one in itertools.islice(enumerate(together), record, None):
                yield first, index, first + one.shard, one
            record = 0


def open_stream(data: ConfigDict, split: str) -> ShardStream:
    """Open the shards that a checked config block names, for streaming.

    Raises:
        UserError: There are fewer shards than processes, or the first records hold no image.
    """
    shards = SOURCES.get(data.source).shards
    assert shards is not None, "checked by can_jax.config.validate"
    root, names = shards.locate(data, split)
    paths = [os.path.join(root, name) for name in names]
    if len(paths) < jax.process_count():
        raise UserError(
            f"{len(paths)} shards in {root} are too few for {jax.process_count()} processes"
        )
    read = shards.reader(data)
    for path in paths:
        first = list(itertools.islice(read(path), FIRST_RECORDS))
        if any(image for image, _ in first):
            return ShardStream(paths, read, data.examples, data.shards_at_once)
        if first and shards.no_image:
            raise UserError(f"{path} {shards.no_image.format(**data)}")
    raise UserError(f"no image in any of {len(paths)} shards, such as {paths[0]}")


class StreamingLoader(Loader):
    """A loader of the batches of a streamed run, from a step on.

    Args:
        config: The resolved configuration.
        source: The stream that yields the images.
        mesh: The device mesh over which batches are split.
        first_step, total_steps: The first step to load, and the step after the last one.
        states: The checkpointed `state` of the loader to resume; None for a new run.
    """

    def __init__(
        self,
        config: ConfigDict,
        source: ShardStream,
        mesh: Mesh,
        first_step: int,
        total_steps: int,
        states: States | None = None,
    ):
        process, processes = jax.process_index(), jax.process_count()
        start = resumed(states, process, processes)
        self._last = np.array(start, np.int64)
        share = slice_of_process(mesh, config.batch_size)
        views = RandomViews.from_config(config)
        steps = first_step, total_steps
        dataset = _batches(config, source, views, steps, share, start)
        super().__init__(dataset, share, config.data.skip_limit, states)

    def account(self, host: dict[str, np.ndarray]) -> None:
        """Record the position after a batch, and count the replaced images.

        Raises:
            UserError: No image of a chunk could be decoded.
        """
        self._last = host["place"][-1]
        self.skipped += int((host["attempt"] > 0).sum())
        if (host["attempt"] == NOTHING).any():
            raise UserError(
                "no image of a whole chunk of the stream can be decoded, nor one of its window; "
                "the log lists their names"
            )

    @property
    def place(self) -> list[int]:
        """The position after the last row of the batch returned last, as a `Place`."""
        return self._last.tolist()


def resumed(states: States | None, process: int, processes: int) -> tuple[int, ...]:
    """Return the position at which a process resumes, given the states of all processes."""
    if not states:
        return START
    if len(states) == processes:
        return tuple(states[process][2:])
    epoch = max(state[2] for state in states) + 1
    logging.warning(
        "streaming was begun with %d processes and resumes with %d, from epoch %d on",
        len(states), processes, epoch,
    )  # fmt: skip
    return (epoch, 0, 0, 0)


def _batches(
    config: ConfigDict,
    source: ShardStream,
    views: RandomViews,
    steps: tuple[int, int],
    share: ProcessSlice,
    start: tuple[int, ...],
) -> Any:
    """Return batches as `chunks.batches` does, with the position after each row as ``place``."""
    tf = tensorflow()
    failed: list[UserError] = []

    def groups() -> Iterator[tuple]:
        stream = source.stream(config.seed, config.data.window, share.index, share.count, start)
        parts = np.array_split(share.rows, -(-len(share.rows) // chunks.CHUNK))
        try:
            for step in range(*steps):
                for part in parts:
                    group = list(itertools.islice(stream, len(part)))
                    images, labels, names, places, windows = zip(*group, strict=True)
                    spares = _spares(windows[-1], SPARES - len(group))
                    yield (
                        step * config.batch_size + part, images, labels, names, places,
                        [image for image, _ in spares], [label for _, label in spares],
                    )  # fmt: skip
        except UserError as error:
            failed.append(error)

    many = (None,)
    signature = tuple(
        tf.TensorSpec(shape, dtype)
        for shape, dtype in (
            (many, tf.int64), (many, tf.string), (many, tf.int32), (many, tf.string),
            ((None, 4), tf.int64), (many, tf.string), (many, tf.int32),
        )
    )  # fmt: skip
    repair = chunks.Repair(views)

    def chunk(
        positions: Any, images: Any, labels: Any, names: Any, following: Any, *spares: Any
    ) -> Any:
        def mend(
            pixels: Any, rows: Any, positions: Any, labels: Any, images: Any, names: Any,
            more_images: Any, more_labels: Any,
        ) -> tuple[np.ndarray, ...]:  # fmt: skip
            undecodable: set[int] = set()

            def index_at(row: int, attempt: int) -> int:
                return (row + attempt) % len(images) if attempt < len(images) else attempt

            def candidate(row: int, attempt: int) -> tuple[bytes, int]:
                if attempt:
                    undecodable.add(index_at(row, attempt - 1))
                index = index_at(row, attempt)
                if index in undecodable:
                    return b"", -1
                if index < len(images):
                    return images[index], int(labels[index])
                return more_images[index - len(images)], int(more_labels[index - len(images)])

            attempts = len(images) + len(more_images)
            mended = repair(pixels, rows, positions, labels, candidate, attempts)
            mended[2][mended[2] == attempts] = NOTHING
            for row in np.flatnonzero(mended[2]):
                logging.warning("skipped, cannot be decoded: %s", names[row].decode())
            return mended

        extra = [images, names, *spares]
        cut = chunks.decoded(views, images, positions, labels, mend, extra=extra)
        return cut.map(lambda element: element | {"place": following})

    # Handing over a chunk costs as much as an element: 0.6 ms of the interpreter.
    elements = tf.data.Dataset.from_generator(groups, output_signature=signature)
    dataset = chunks.in_parallel(
        elements, chunk, len(share.rows), config.data.threads, grouped=True
    )
    dataset.rows, dataset.failed = len(share.rows), failed
    return dataset


def _spares(window: list[Windowed], count: int) -> list[tuple[bytes, int]]:
    """Return images and labels of a window, with which a small chunk replaces broken images."""
    if count <= 0:
        return []
    chosen = window[:: max(1, len(window) // count)][:count]
    return [(record.image, record.label) for *_, record in chosen]
