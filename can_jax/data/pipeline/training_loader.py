"""Loaders of training batches. In each process, tf.data produces some rows of every batch. The rows
of all processes together form globally sharded arrays."""

import functools
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int, UInt32
from ml_collections import ConfigDict

from can_jax.data.index.examine import why_undecodable
from can_jax.data.pipeline import chunks
from can_jax.data.pipeline.batch import Batch, needs_content
from can_jax.data.pipeline.order import CYCLE, VERSION, Order, shares
from can_jax.data.pipeline.views import RandomViews
from can_jax.data.sources.base import Source
from can_jax.distributed.process_slice import ProcessSlice, slice_of_process
from can_jax.distributed.runtime import gather
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import tensorflow

# The number of examples tried at a position of the stream before the run stops with an error.
DECODE_ATTEMPTS = 16
# The number of positions whose examples are computed at once; 16 times as fast as with 64.
ORDERED = 4096
SHARE_ERROR = 0.05  # the relative error above which the share of a part of a mixture is logged
AHEAD = 2  # batches loaded and transferred ahead of the training step
NAMED = 1000  # undecodable files logged by name; further ones are only counted


Contents = Callable[[Int[np.ndarray, " local"]], UInt32[np.ndarray, " local"]]
States = list[list[int]]  # a row for each process: images seen, images skipped, position


def counts_of(states: States | None, process: int, processes: int) -> tuple[int, int]:
    """Return the number of images that a process had loaded when the checkpoint was written, and
    the number that it had skipped.

    If the number of processes has changed, process 0 gets the sums over all processes, and the
    other processes get 0.
    """
    if states and len(states) == processes:
        return states[process][0], states[process][1]
    if states and process == 0:
        return sum(state[0] for state in states), sum(state[1] for state in states)
    return 0, 0


def order_of(seed: int, source: Source, version: int = VERSION) -> Order:
    """Return the order of a source's examples, and log each part of a mixture whose fraction of the
    stream deviates from its weight."""
    if source.parts:
        for index, (requested, real) in enumerate(shares(source.weights)):
            if abs(real / requested - 1) > SHARE_ERROR:
                logging.warning(
                    "part %d of config.data.mixture gets the fraction %.2g of the stream instead "
                    "of %.2g: fractions are multiples of about 1/%d", index, real, requested, CYCLE,
                )  # fmt: skip
        sizes = tuple(part.examples for part in source.parts)
        return Order(seed, sizes, source.weights, version)
    return Order(seed, (source.examples,), version=version)


def host_batches(
    config: ConfigDict,
    source: Source,
    steps: tuple[int, int],
    rows: Int[np.ndarray, " local"],
    order: Order | None = None,
) -> Any:
    """Return a `tf.data.Dataset` with one process's rows of the batches in a range of steps.

    Args:
        config: The resolved configuration; `data`, `augment`, `batch_size` and `seed` are used.
        source: The random-access source from which to read the images.
        steps: The first step to load, and the step at which to stop, exclusive.
        rows: The indices of the rows to load from each global batch.
        order: The order of the examples; None for the order of a new run with `config.seed`.

    Returns:
        A data set of dicts, one for each batch; see `chunks.batches`.
    """
    order = order or order_of(config.seed, source)

    def replacement(position: int, attempt: int) -> int:
        return int(order.examples_at(np.array([position]), attempt)[0])

    return chunks.batches(
        source,
        RandomViews.from_config(config),
        places(order, steps, config.batch_size, rows),
        len(rows),
        config.data.threads,
        replacement,
        DECODE_ATTEMPTS,
    )


def places(
    order: Order, steps: tuple[int, int], batch_size: int, rows: Int[np.ndarray, " local"]
) -> Any:
    """Return a `tf.data.Dataset` of pairs of a stream position and an example index, for the given
    rows of each step."""
    tf = tensorflow()
    first, last = steps
    block = max(1, ORDERED // len(rows))

    def examples_of(step: np.int64) -> tuple[np.ndarray, np.ndarray]:
        step_range = np.arange(int(step), min(int(step) + block, last))
        positions = (step_range[:, None] * batch_size + rows).reshape(-1)
        return positions, order.examples_at(positions)

    def elements(step: Any) -> Any:
        pair = tf.numpy_function(examples_of, [step], (tf.int64, tf.int64), stateful=False)
        return tf.data.Dataset.from_tensor_slices(
            tuple(tf.ensure_shape(column, (None,)) for column in pair)
        )

    return tf.data.Dataset.range(first, last, block, output_type=tf.int64).flat_map(
        tf.autograph.experimental.do_not_convert(elements)
    )


class Loader(Iterator[Batch]):
    """An iterator over batches of globally sharded arrays, which a thread prefetches to the
    devices.

    Args:
        dataset: A data set with this process's rows of each batch, as `chunks.batches` returns it.
        share: The slice of the global batch that this process loads.
        skip_limit: The fraction of undecodable images, from 0 to 1, above which `UserError` is
            raised; see `check_share`.
        states: The `state` stored in the checkpoint; None for a new run.
        contents: A function that maps stream positions to `Batch.content`; None for batches without
            content identifiers.

    Attributes:
        seen, skipped: The number of images that this process has loaded, and the number of images
            that it skipped as undecodable.
    """

    def __init__(
        self,
        dataset: Any,
        share: ProcessSlice,
        skip_limit: float,
        states: States | None = None,
        contents: Contents | None = None,
    ):
        self._skip_limit, self._slice = skip_limit, share.index
        self.seen, self.skipped = counts_of(states, jax.process_index(), jax.process_count())
        batches = [chunks.elements(dataset)]
        # Clearing the list stops tf.data's reader threads, which would otherwise hang at exit.
        weakref.finalize(self, batches.clear)
        self._load = functools.partial(_place_next, batches, share, contents)
        self._thread = ThreadPoolExecutor(1)
        self._ahead = deque(self._thread.submit(self._load) for _ in range(AHEAD))

    def __next__(self) -> Batch:
        host, batch = self._ahead.popleft().result()
        self._ahead.append(self._thread.submit(self._load))
        self.seen += len(host["position"])
        self.account(host)
        check_share(self.skipped, self.tried, self._skip_limit)
        return batch

    @property
    def tried(self) -> int:
        """The number of images that this process has tried to decode."""
        return self.seen

    def skipped_by_all(self) -> int:
        """Return the number of images that all processes have skipped. Collective: every process
        must call this."""
        skipped: dict[int, int] = {}  # by slice; processes along the axis `tensor` share one
        counts = gather("skipped images", np.array([self._slice, self.skipped]))
        for index, count in counts.tolist():
            skipped[index] = max(count, skipped.get(index, 0))
        return sum(skipped.values())

    @property
    def state(self) -> States:
        """The loader state to checkpoint. The state has one row per process: images seen, images
        skipped, and `place`.

        Collective: every process must call this.
        """
        mine = np.array([self.seen, self.skipped, *self.place], np.int64)
        return gather("state of the data loader", mine).tolist()

    @property
    def place(self) -> list[int]:
        """The position of this process in its stream, as a list of ints; empty if the step
        determines the position."""
        return []

    def account(self, host: dict[str, np.ndarray]) -> None:
        """Count the images that were skipped in a batch, given this process's rows of the batch as
        a dict of host arrays."""
        raise NotImplementedError


def _place_next(
    batches: list[Any], share: ProcessSlice, contents: Contents | None
) -> tuple[dict[str, Any], Batch]:
    """Load the next batch. Return the host arrays of this process without the images, and the batch
    as global arrays."""
    host = next(batches[0])
    local: Any = Batch(host.pop("views"), host["position"].astype(np.uint32), host["label"])
    if contents is not None:
        local = local._replace(content=contents(host["position"]))
    return host, jax.tree.map(share.place, local)


class TrainingLoader(Loader):
    """A loader of training batches from a random-access source, in the order that `config.seed`
    determines."""

    def __init__(
        self,
        config: ConfigDict,
        source: Source,
        mesh: Mesh,
        first_step: int,
        total_steps: int,
        states: States | None = None,
        order_version: int = VERSION,
    ):
        share = slice_of_process(mesh, config.batch_size)
        self._order = order_of(config.seed, source, order_version)
        steps = first_step, total_steps
        dataset = host_batches(config, source, steps, share.rows, self._order)
        self._config, self._source = config, source
        contents = self._contents if needs_content(config) else None
        super().__init__(dataset, share, config.data.skip_limit, states, contents)
        self._named: set[int] = set()

    @property
    def tried(self) -> int:
        """The number of images that this process has tried to decode. Another image is tried for
        each one that is skipped."""
        return self.seen + self.skipped

    def account(self, host: dict[str, np.ndarray]) -> None:
        """Count the images that this process skipped in a batch, and log their names.

        Raises:
            UserError: None of the images tried at a stream position can be decoded.
        """
        for row in np.flatnonzero(host["attempt"]):
            self._report(int(host["position"][row]), int(host["attempt"][row]))

    def _contents(self, positions: Int[np.ndarray, " local"]) -> UInt32[np.ndarray, " local"]:
        """Return the `Batch.content` at stream positions: the lower 32 bits of an image's content
        digest or, without a digest, of its index in the source. A substitute for an undecodable
        image gets the content value of the undecodable image.
        """
        examples = self._order.examples_at(np.asarray(positions, np.int64))
        numbers = examples.astype(np.uint64)
        if (digests := self._source.content_digests) is not None:
            chosen = digests[examples]
            numbers = np.where(chosen == 0, numbers, chosen)
        return numbers.astype(np.uint32)

    def _report(self, position: int, attempts: int) -> None:
        """Count the images skipped at a stream position, and log the name of each image at most
        once.

        Raises:
            UserError: None of the `DECODE_ATTEMPTS` images tried at ``position`` can be decoded.
        """
        for attempt in range(attempts):
            example = int(self._order.examples_at(np.array([position]), attempt)[0])
            self.skipped += 1
            if example not in self._named and len(self._named) < NAMED:
                self._named.add(example)
                logging.warning(
                    "%s cannot be decoded (%s); another image replaces it",
                    self._source.describe(example), self._reason(example),
                )  # fmt: skip
        if attempts == DECODE_ATTEMPTS:
            raise UserError(
                f"none of {attempts} images tried at stream position {position} can be decoded "
                f"to {self._config.data.channels} channels; the last was "
                f"{self._source.describe(example)}. Check the files and config.data.channels"
            )

    def _reason(self, example: int) -> str:
        """Return the reason why an example cannot be decoded, as a phrase for the log."""
        data = self._config.data
        (encoded,), _ = self._source.read(np.array([example]))
        if not encoded:
            return "cannot be read, or is empty"
        reason = why_undecodable(encoded, data.max_pixels, data.range, whole=True)
        return reason or f"not to {data.channels} channels"


def check_share(skipped: int, tried: int, limit: float) -> None:
    """Check that the fraction of undecodable images is not significantly above a limit.

    The check allows two standard deviations of a Poisson count, so that a few early failures do not
    stop the run.

    Args:
        skipped: The number of undecodable images.
        tried: The number of images that were tried so far, with or without success.
        limit: The allowed fraction of undecodable images, from 0 to 1.

    Raises:
        UserError: The fraction of undecodable images is significantly above ``limit``.
    """
    if skipped - 2 * math.sqrt(skipped) > limit * tried:
        raise UserError(
            f"{skipped} of the first {tried} images cannot be decoded, a larger fraction than "
            f"config.data.skip_limit={limit}; the log names the images"
        )
