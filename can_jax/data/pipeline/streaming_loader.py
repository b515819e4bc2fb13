"""Streaming: shards that are read from start to end, where an index is not to be had.

Compressed shards and remote stores that dislike random access can be trained on so. What it
guarantees is less than the indexed order does:

- Each epoch, a process reads each of its shards once, in a new order. Processes share out shards,
  not examples: one that has smaller shards begins its next epoch earlier.
- Examples are shuffled within windows of `data.window` of them, which may span shards.
- A run that goes on with as many processes as before sees the very stream it would have seen. With
  another number each process starts at the beginning of the next epoch, and says so.
- In the place of an image that cannot be decoded comes the next one of its chunk.
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
from can_jax.data.pipeline.shard_reader import Read, reader_of
from can_jax.data.pipeline.training_loader import Loader, States
from can_jax.data.pipeline.views import RandomViews
from can_jax.data.sources.shards import FIRST_RECORDS, locate_shards
from can_jax.data.storage.splits import shown
from can_jax.distributed.process_slice import Share, share_of_process
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import tensorflow

# Where a process is: epoch, number of its shard in the epoch, number of the record in the shard at
# which the window begins, and how many of the window it has had.
Place = Int[np.ndarray, "4"]
START = (0, 0, 0, 0)
NOTHING = 2**30  # attempts at a row for which no image of its chunk can be decoded


class ShardStream:
    """A source that is read in one direction.

    Args:
        paths: of the shards.
        read: the encoded images and labels of a shard.
        examples: about how many there are, by which epochs are counted.
    """

    labels = None

    def __init__(self, paths: list[str], read: Read, examples: int):
        self.paths, self._read, self.examples = paths, read, examples

    def stream(
        self, seed: int, window: int, process: int, processes: int, place: tuple[int, ...]
    ) -> Iterator[tuple[bytes, int, str, Place]]:
        """Yield image, label, name and the place after it of one example after another, forever.

        Raises:
            UserError: All shards were read since the last image, as when a store is gone.
        """
        epoch, shard, record, taken = place
        barren: set[str] = set()  # shards that were read since the last image
        for epoch in itertools.count(epoch):  # noqa: B020
            order = np.random.default_rng([seed, epoch]).permutation(len(self.paths))
            mine = [self.paths[i] for i in order[process::processes]]
            barren.update([] if shard or record or taken else mine)
            places = self._from(mine, shard, record)
            while batch := list(itertools.islice(places, window)):
                shard, record, *_ = batch[0]
                shuffle = np.random.default_rng([seed, epoch, shard, record])
                for number, i in enumerate(shuffle.permutation(len(batch))):
                    if number < taken:
                        continue
                    where, which, image, label = batch[i]
                    name = f"{shown(mine[where])}, record {which}"  # TensorFlow takes UTF-8 only
                    after = np.array([epoch, shard, record, number + 1], np.int64)
                    barren = barren if not image else set()
                    yield image, label, name, after
                taken = 0
            shard, record, taken = 0, 0, 0
            if len(barren) == len(self.paths):
                raise UserError(
                    f"no image in any of {len(barren)} shards any more, such as {shown(mine[0])}; "
                    "warnings above say why"
                )

    def _from(
        self, paths: list[str], shard: int, record: int
    ) -> Iterator[tuple[int, int, bytes, int]]:
        """(shard, record, image, label) from a place on, to the end of the shards."""
        for where in range(shard, len(paths)):
            found = enumerate(self._read(paths[where]))
            for which, (image, label) in itertools.islice(found, record, None):
                yield where, which, image, label
            record = 0


def open_stream(data: ConfigDict, split: str) -> ShardStream:
    """The shards that a checked config block names, to be streamed.

    Raises:
        UserError: there are none, or fewer than processes, or no image at the start of the first.
    """
    root, names = locate_shards(data.source, data.path, split, compressed=True)
    paths = [os.path.join(root, name) for name in names]
    if len(paths) < jax.process_count():
        raise UserError(
            f"{len(paths)} shards in {root} are too few for {jax.process_count()} processes"
        )
    read = reader_of(data)
    for path in paths:
        first = list(itertools.islice(read(path), FIRST_RECORDS))
        if any(image for image, _ in first):
            return ShardStream(paths, read, data.examples)
        if first and data.source == "tfrecord":
            raise UserError(f"{path} holds no {data.image_key!r}; set config.data.image_key")
    raise UserError(f"no image in any of {len(paths)} shards, such as {paths[0]}")


class StreamingLoader(Loader):
    """The batches of a run that streams, from a step on.

    Args:
        config: resolved.
        source: of the images.
        mesh: of the devices.
        first_step, total_steps: of the run; the second is exclusive.
        states: `state` of the loader that this one goes on from.
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
        place = resumed(states, process, processes)
        self._last = np.array(place, np.int64)
        share = share_of_process(mesh, config.batch_size)
        views = RandomViews.from_config(config)
        steps = first_step, total_steps
        dataset = _batches(config, source, views, steps, share, place)
        super().__init__(dataset, share, config.data.skip_limit, states)

    def account(self, host: dict[str, np.ndarray]) -> None:
        """Keep the place, and count what was replaced.

        Raises:
            UserError: nothing was there to replace it.
        """
        self._last = host["place"][-1]
        self.skipped += int((host["attempt"] > 0).sum())
        if (host["attempt"] == NOTHING).any():
            raise UserError(
                "no image of a whole chunk of the stream can be decoded; see their names"
            )

    @property
    def place(self) -> list[int]:
        """After the last row of the batch that was returned last; as `Place`."""
        return self._last.tolist()


def resumed(states: States | None, process: int, processes: int) -> tuple[int, ...]:
    """The place at which a process goes on, given the states of all of them."""
    if not states:
        return START
    if len(states) == processes:
        return tuple(states[process][2:])
    epoch = max(state[2] for state in states) + 1
    logging.warning(
        "streaming was begun with %d processes and goes on with %d: from epoch %d on",
        len(states), processes, epoch,
    )  # fmt: skip
    return (epoch, 0, 0, 0)


def _batches(
    config: ConfigDict,
    source: ShardStream,
    views: RandomViews,
    steps: tuple[int, int],
    share: Share,
    place: tuple[int, ...],
) -> Any:
    """As `chunks.batches`, with the place after each row."""
    tf = tensorflow()
    failed: list[UserError] = []

    def examples() -> Iterator[tuple]:
        stream = source.stream(config.seed, config.data.window, share.number, share.count, place)
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

    def chunk(positions: Any, images: Any, labels: Any, names: Any, places: Any) -> Any:
        def mend(
            pixels: Any, rows: Any, positions: Any, labels: Any, images: Any, names: Any
        ) -> tuple[np.ndarray, ...]:
            def candidate(row: int, attempt: int) -> tuple[bytes, int]:
                other = (row + attempt) % len(images)
                return images[other], int(labels[other])

            mended = repair(pixels, rows, positions, labels, candidate, len(images))
            mended[2][mended[2] == len(images)] = NOTHING
            for row in np.flatnonzero(mended[2]):
                logging.warning("skipped, cannot be decoded: %s", names[row].decode())
            return mended

        cut = chunks.decoded(views, images, positions, labels, mend, extra=[images, names])
        return cut.map(lambda element: element | {"place": places})

    elements = tf.data.Dataset.from_generator(examples, output_signature=signature)
    dataset = chunks.in_parallel(
        elements, chunk, len(share.rows), config.data.threads, whole_chunks=True
    )
    dataset.rows, dataset.failed = len(share.rows), failed
    return dataset
