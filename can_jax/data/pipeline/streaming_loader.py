"""A loader that reads shards sequentially, for data without an index.

The loader supports compressed shards, and remote stores with slow random access. Compared to the
loader of indexed data, the streaming loader guarantees less about the order of examples.

- Each epoch divides whole shards among the processes in a new random order. A process reads each of
  its shards once per epoch. A process with smaller shards begins the next epoch earlier than the
  others.

- Examples are shuffled within windows of `data.window` examples. The examples of a window come
  alternately from `data.shards_at_once` shards, which mixes the classes even if each shard holds
  one class.

- A resumed run reads the same stream as an uninterrupted run if the number of processes that divide
  the shards is unchanged. Processes that load the same rows of a batch count as one. If the number
  of processes has changed, all processes start at the next epoch and log a warning.

- An image that cannot be decoded is replaced by another image of the same chunk or shuffle window.
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

from can_jax.data.formats.shard_reader import Read
from can_jax.data.pipeline import chunks
from can_jax.data.pipeline.training_loader import Loader, States
from can_jax.data.pipeline.turns import Record, in_turns
from can_jax.data.pipeline.views import RandomViews
from can_jax.data.sources.base import Fingerprint
from can_jax.data.sources.registry import SOURCES
from can_jax.data.sources.shards import FIRST_RECORDS
from can_jax.data.storage.digest import digest_of_columns, digest_of_names
from can_jax.data.storage.files import Names, shard_sizes
from can_jax.data.storage.splits import shown
from can_jax.distributed.process_slice import ProcessSlice, slice_of_process
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import tensorflow

# The stream position of a process, four integers: the epoch; the index of the first shard of the
# group that is read concurrently; the index of the window's first record among the interleaved
# records of the group; and the number of examples of the window already used.
Place = Int[np.ndarray, "4"]
START = (0, 0, 0, 0)
SPARES = 16  # the minimum number of images to choose a substitute from, if the window has as many
NOTHING = 2**30  # the `attempt` of a row if no image and no substitute of its chunk can be decoded


class Windowed(NamedTuple):
    """A record of a shuffle window, and the position of the record in the epoch.

    Attributes:
        group: The index of the first shard in the record's group of concurrently read shards.
        position: The index of the record among the interleaved records of the group.
        shard: The index of the record's shard among the shards that a process reads in the epoch.
        record: The record, whose attribute ``shard`` counts from the first shard of the group.
    """

    group: int
    position: int
    shard: int
    record: Record


class Streamed(NamedTuple):
    """An example that a `ShardStream` yields.

    Attributes:
        image, label, name: The encoded image, its label, and a phrase for messages that names its
            shard and record.
        place: The position in the stream after this example, as a `Place`.
        window: All records of the example's shuffle window, in the order in which they were read.
    """

    image: bytes
    label: int
    name: str
    place: tuple[int, ...]
    window: list[Windowed]


class ShardStream:
    """A source that can only be read sequentially.

    Args:
        paths: The paths or URLs of the shards.
        read: A function that takes the path of a shard and yields its (encoded image, label) pairs.
        examples: The approximate number of examples in all shards, from which the run computes the
            number of steps in an epoch.
        at_once: The number of shards that a process reads concurrently.
    """

    labels = None
    parts = ()

    def __init__(self, paths: list[str], read: Read, examples: int, at_once: int = 1):
        self.paths, self._read, self.examples, self._at_once = paths, read, examples, at_once

    def stream(
        self, seed: int, window: int, process: int, processes: int, place: tuple[int, ...]
    ) -> Iterator[Streamed]:
        """Yield the examples of one epoch after another, without end.

        Args:
            seed: The seed of the order of the shards and of the shuffling within windows.
            window: The number of examples in a shuffle window.
            process, processes: The index of this process's `ProcessSlice`, and the number of
                distinct slices.
            place: The position in the stream at which to start, as a `Place`.

        Raises:
            UserError: A shard cannot be read, for example because it was removed, or no shard
                contains an image.
        """
        epoch, shard, record, taken = place
        barren: set[str] = set()  # shards that were read since the last image
        for epoch in itertools.count(epoch):  # noqa: B020
            order = np.random.default_rng([seed, epoch]).permutation(len(self.paths))
            mine = [self.paths[j] for j in order[process::processes]]
            if not (shard or record or taken):  # the epoch is read from its start
                barren.update(mine)
            records = self._from(mine, shard, record)
            while batch := list(itertools.islice(records, window)):
                shard, record = batch[0].group, batch[0].position
                shuffle = np.random.default_rng([seed, epoch, shard, record])
                shuffled = shuffle.permutation(len(batch)).tolist()
                for i, j in enumerate(shuffled[taken:], taken):
                    _, number, image, label = batch[j].record
                    # TensorFlow takes UTF-8 only.
                    name = f"{shown(mine[batch[j].shard])}, record {number}"
                    if image:
                        barren.clear()
                    yield Streamed(image, label, name, (epoch, shard, record, i + 1), batch)
                taken = 0
            shard, record, taken = 0, 0, 0
            if len(barren) == len(self.paths):
                raise UserError(
                    f"none of the {len(barren)} shards contains an image anymore; one of them is "
                    f"{shown(mine[0])}. The warnings above give the reasons"
                )

    def fingerprint(self) -> Fingerprint:
        """Return a dict of a digest of the shards' names and a digest of their sizes."""
        root = os.path.commonpath([os.path.dirname(path) for path in self.paths])
        names = Names.of([os.path.relpath(path, root) for path in self.paths])
        sizes = digest_of_columns(shard_sizes(self.paths))
        return {"names": digest_of_names(names), "sizes": sizes}

    def _from(self, paths: list[str], shard: int, record: int) -> Iterator[Windowed]:
        """Yield the records of this process's shards from a position to the end of the epoch.

        Args:
            paths: The paths of the shards that this process reads, in the order of the epoch.
            shard: The index in ``paths`` at which the current group of concurrently read shards
                begins.
            record: The index of the first record to yield, among the interleaved records of the
                group.
        """
        for first in range(shard, len(paths), self._at_once):
            together = in_turns(self._read, paths[first : first + self._at_once])
            for index, one in itertools.islice(enumerate(together), record, None):
                yield Windowed(first, index, first + one.shard, one)
            record = 0


def open_stream(data: ConfigDict, split: str) -> ShardStream:
    """Open the shards of a split for sequential reading.

    Args:
        data: The validated config block `data`, which locates the shards.
        split: The name of the split, such as `train`.

    Raises:
        UserError: The split has no shard or fewer shards than there are processes, a shard cannot
            be read, or the first records of the shards contain no image.
    """
    for key in ("index", "cache_gb", "disk_cache"):
        if data[key]:
            logging.warning(
                "config.data.%s=%s is not used with config.data.streaming=True", key, data[key]
            )
    shards = SOURCES.get(data.source).shards
    assert shards is not None, "can_jax.config.validate rejects sources without shards"
    root, names = shards.locate(data, split)
    paths = [os.path.join(root, name) for name in names]
    if len(paths) < jax.process_count():
        raise UserError(
            f"{len(paths)} shards in {root} are too few for {jax.process_count()} processes: use "
            "fewer processes, or divide the data into more shards"
        )
    read = shards.reader(data)
    for path in paths:
        first = list(itertools.islice(read(path), FIRST_RECORDS))
        if any(image for image, _ in first):
            return ShardStream(paths, read, data.examples, data.shards_at_once)
        if first and shards.no_image:
            raise UserError(f"{path} {shards.no_image.format(**data)}")
    raise UserError(
        f"none of the {len(paths)} shards has an image in its first {FIRST_RECORDS} records; one "
        f"of the shards is {paths[0]}. Check config.data.path"
    )


class StreamingLoader(Loader):
    """A loader of training batches from a stream of shards.

    Args:
        config: The resolved configuration; `data`, `augment`, `batch_size` and `seed` are used.
        source: The stream of shards to read.
        mesh: The device mesh over which batches are split.
        first_step, total_steps: The first step to load, and the total number of steps of the run.
        states: The `Loader.state` stored in the checkpoint; None for a new run.
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
        share = slice_of_process(mesh, config.batch_size)
        self._share = [share.index, share.count]
        start = resumed(states, self._share, process, processes)
        self._last = np.array(start, np.int64)
        views = RandomViews.from_config(config)
        steps = first_step, total_steps
        dataset = _batches(config, source, views, steps, share, start)
        super().__init__(dataset, share, config.data.skip_limit, states)

    def account(self, host: dict[str, np.ndarray]) -> None:
        """Store the stream position at which a batch ends, and count the images replaced in the
        batch.

        Raises:
            UserError: Every image of a chunk is undecodable, and so is every substitute from the
                shuffle window.
        """
        self._last = host["place"][-1]
        self.skipped += int((host["attempt"] > 0).sum())
        if (host["attempt"] == NOTHING).any():
            raise UserError(
                "all images in one part of a batch, and all their substitutes from the shuffle "
                "window, are undecodable; the log names the images"
            )

    @property
    def place(self) -> list[int]:
        """The integers of the `Place` after the last returned batch, the index of the process's
        slice, and the number of slices."""
        return self._last.tolist() + self._share


def resumed(
    states: States | None, share: list[int], process: int, processes: int
) -> tuple[int, ...]:
    """Return the stream position at which a process resumes.

    If the checkpoint was written with another number of process slices, all processes start at the
    epoch after that of the most advanced process. The stream starts at epoch 0 if the checkpoint
    was written by a run that read its data by random access.

    Args:
        states: The states of all processes in the checkpoint; None for a new run.
        share: The index of this process's `ProcessSlice`, and the number of distinct slices.
        process, processes: The index of this process, and the number of processes.
    """
    if not states:
        return START
    if len(states[0]) == 2:
        logging.warning(
            "the checkpoint was written without config.data.streaming=True: streaming starts at "
            "epoch 0"
        )
        return START
    if len(states[0]) == 6:  # written by an older version, which did not store the slice
        own = states[process] if len(states) == processes == share[1] else None
        reason = (
            "the checkpoint is from an older version, which did not store how its "
            f"{len(states)} processes divided a batch"
        )
    else:
        own = next((state for state in states if state[6:] == share), None)
        reason = (
            f"each batch was divided among the processes into {states[0][7]} parts, and is now "
            f"divided into {share[1]}"
        )
    if own is not None:
        return tuple(own[2:6])
    epoch = max(state[2] for state in states) + 1
    logging.warning("%s: streaming resumes at the start of epoch %d", reason, epoch)
    return (epoch, 0, 0, 0)


def _batches(
    config: ConfigDict,
    source: ShardStream,
    views: RandomViews,
    steps: tuple[int, int],
    share: ProcessSlice,
    start: tuple[int, ...],
) -> Any:
    """Return a data set of dicts as `chunks.batches` does, with the additional entry ``place``, the
    stream position after each row. If neither the image of a row nor any substitute can be decoded,
    the entry ``attempt`` of the row is `NOTHING`."""
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
                logging.warning("skipped an image that cannot be decoded: %s", names[row].decode())
            return mended

        extra = [images, names, *spares]
        cut = chunks.decoded(views, images, positions, labels, mend, extra=extra)
        return cut.map(lambda element: element | {"place": following})

    # Passing a chunk to tf.data holds the GIL for 0.6 ms, as long as passing a single element.
    elements = tf.data.Dataset.from_generator(groups, output_signature=signature)
    dataset = chunks.in_parallel(
        elements, chunk, len(share.rows), config.data.threads, grouped=True
    )
    dataset.rows, dataset.failed = len(share.rows), failed
    return dataset


def _spares(window: list[Windowed], count: int) -> list[tuple[bytes, int]]:
    """Return up to ``count`` images of a window and their labels, as substitutes for the
    undecodable images of a small chunk."""
    if count <= 0:
        return []
    chosen = window[:: max(1, len(window) // count)][:count]
    return [(windowed.record.image, windowed.record.label) for windowed in chosen]
