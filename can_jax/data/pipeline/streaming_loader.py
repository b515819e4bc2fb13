"""A loader that streams shards sequentially, for data without an index.

It reads compressed shards and remote stores with slow random access. Its guarantees are weaker than
those of the indexed order:

- In each epoch, a process reads each of its shards once, in a new order. Processes divide shards,
  not examples: a process with smaller shards begins its next epoch earlier.
- Examples are shuffled within windows of `data.window` examples, which may span shards.
- A run resumed with the same number of processes sees the same stream as without the interruption.
  With another number, each process starts at the beginning of the next epoch, and logs it.
- An image that cannot be decoded is replaced by the next image of its chunk.
"""

import itertools
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from can_jax.data.pipeline import chunks
from can_jax.data.pipeline.training_loader import Loader, States
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

# The position of a process: epoch, index of its shard in the epoch, index of the record in the
# shard at which the window begins, and the number of examples of the window already used.
Place = Int[np.ndarray, "4"]
START = (0, 0, 0, 0)
NOTHING = 2**30  # the `attempt` of a row if no image of its chunk can be decoded


class ShardStream:
    """A source that can only be read sequentially.

    Args:
        paths: The paths of the shards.
        read: A function that yields the encoded images and labels of a shard.
        examples: The approximate number of examples, which defines the length of an epoch.
    """

    labels = None
    parts = ()

    def __init__(self, paths: list[str], read: Read, examples: int):
        self.paths, self._read, self.examples = paths, read, examples

    def stream(
        self, seed: int, window: int, process: int, processes: int, place: tuple[int, ...]
    ) -> Iterator[tuple[bytes, int, str, Place]]:
        """Yield examples forever, each with the position after it.

        Args:
            seed: The seed of the order of shards and of the shuffling.
            window: The number of examples in a shuffle window.
            process, processes: The index of this process, and the number of processes.
            place: The position at which to start.

        Yields:
            The encoded image, label and name of each example, and the `Place` after it.

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
                for i, j in enumerate(shuffle.permutation(len(batch))):
                    if i < taken:
                        continue
                    where, which, image, label = batch[j]
                    name = f"{shown(mine[where])}, record {which}"  # TensorFlow takes UTF-8 only
                    after = np.array([epoch, shard, record, i + 1], np.int64)
                    barren = barren if not image else set()
                    yield image, label, name, after
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

    def _from(
        self, paths: list[str], shard: int, record: int
    ) -> Iterator[tuple[int, int, bytes, int]]:
        """Yield (shard, record, image, label) from a position to the end of the shards."""
        for where in range(shard, len(paths)):
            records = enumerate(self._read(paths[where]))
            for which, (image, label) in itertools.islice(records, record, None):
                yield where, which, image, label
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
            return ShardStream(paths, read, data.examples)
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
                "no image of a whole chunk of the stream can be decoded; the log lists their names"
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

    def examples() -> Iterator[tuple]:
        stream = source.stream(config.seed, config.data.window, share.index, share.count, start)
        try:
            for step in range(*steps):
                for row in share.rows.tolist():
                    yield step * config.batch_size + row, *next(stream)
        except UserError as error:
            failed.append(error)

    signature = tuple(
        tf.TensorSpec(shape, dtype)
        for shape, dtype in (
            ((), tf.int64), ((), tf.string), ((), tf.int32), ((), tf.string), ((4,), tf.int64)
        )
    )  # fmt: skip
    repair = chunks.Repair(views)

    def chunk(positions: Any, images: Any, labels: Any, names: Any, following: Any) -> Any:
        def mend(
            pixels: Any, rows: Any, positions: Any, labels: Any, images: Any, names: Any
        ) -> tuple[np.ndarray, ...]:
            def candidate(row: int, attempt: int) -> tuple[bytes, int]:
                other = (row + attempt) % len(images)
                return images[other], int(labels[other])

            mended = repair(pixels, rows, positions, labels, candidate, len(images))
            mended[2][mended[2] == len(images)] = NOTHING
            for row in np.flatnonzero(mended[2]):
                logging.warning(
                    "%s cannot be decoded; another image takes its place", names[row].decode()
                )
            return mended

        cut = chunks.decoded(views, images, positions, labels, mend, extra=[images, names])
        return cut.map(lambda element: element | {"place": following})

    elements = tf.data.Dataset.from_generator(examples, output_signature=signature)
    dataset = chunks.in_parallel(
        elements, chunk, len(share.rows), config.data.threads, whole_chunks=True
    )
    dataset.rows, dataset.failed = len(share.rows), failed
    return dataset
