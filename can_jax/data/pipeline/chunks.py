"""The host's work, where tf.data does it: read, decode and cut a few images at a time.

A chunk of images goes through one thread, without Python. Only those that cannot be decoded are
then looked at in Python, which tries Pillow, and if that fails puts another image in the place.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

from can_jax.data.decoding.decode import pillow_pixels
from can_jax.data.pipeline.views import Views
from can_jax.data.sources.base import ArraySource, Source
from can_jax.utils.cpu import usable_cores
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import tensorflow

CHUNK = 64  # images at most: enough that what is done once a chunk costs little

# (position, attempt from 1 on) to the example that may replace the one at a position.
Replacement = Callable[[int, int], int]
# (row, attempt) to an encoded image and its label.
Candidate = Callable[[int, int], tuple[bytes, int]]
# Examples to their encoded images and labels.
Read = Callable[[np.ndarray], tuple[list[bytes], np.ndarray]]


def batches(
    source: Source,
    views: Views,
    places: Any,
    rows: int,
    threads: int | None,
    replacement: Replacement | None = None,
    attempts: int = 1,
) -> Any:
    """Batches of views, in the order of the positions.

    An image that cannot be decoded is replaced by another that depends on the position alone, so
    the stream is the same on every machine and no other row moves.

    Args:
        source: of the images.
        views: what is cut from each.
        places: `tf.data.Dataset` of int64 pairs, a position and the example there.
        rows: of a batch; the last one may have fewer.
        threads: of tf.data; by default one a core.
        replacement: of an example that cannot be decoded.
        attempts: how many examples are tried at a position, the first of them included.

    Returns:
        `tf.data.Dataset` of dicts: ``views`` uint8 (rows, views, height, width, channels),
        ``position`` (rows,), ``label`` (rows,), and ``attempt`` (rows,), the number of examples
        that were left out; if that is ``attempts``, the views are black.
    """
    repair = Repair(views)
    failed: list[UserError] = []

    def read(examples: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        try:
            return source.read(examples)
        except UserError as error:
            failed.append(error)
            raise

    def chunk(positions: Any, examples: Any) -> Any:
        if isinstance(source, ArraySource):
            return _array_chunk(source, views, positions, examples)
        return _encoded_chunk(read, views, positions, examples, repair, replacement, attempts)

    dataset = in_parallel(places, chunk, rows, threads)
    dataset.source = source  # lives as long as what is read; see `_array_chunk`
    dataset.rows, dataset.failed = rows, failed
    return dataset


def elements(dataset: Any) -> Iterator[dict[str, np.ndarray]]:
    """Yield the elements of a data set of this package, as NumPy arrays.

    Args:
        dataset: Its attribute ``failed`` holds errors of its Python functions, which tf.data wraps
            or takes for the end, and ``rows`` how many a batch has.

    Raises:
        UserError: The first of them.
    """
    batches = dataset.as_numpy_iterator()
    while True:
        try:
            batch = next(batches, None)
        except tensorflow().errors.OpError:
            if dataset.failed:
                raise dataset.failed[0] from None
            raise
        if batch is None or (dataset.failed and len(batch["position"]) < dataset.rows):
            break  # an error may cut the last batch short
        yield batch
    if dataset.failed:
        raise dataset.failed[0]


def in_parallel(
    elements: Any,
    chunk: Callable[..., Any],
    rows: int,
    threads: int | None,
    *,
    whole_chunks: bool = False,
) -> Any:
    """Batches of ``rows`` elements; ``chunk`` makes a few of them at a time, in one thread.

    With ``whole_chunks`` no chunk goes beyond a batch, so that they begin at the same elements
    wherever a run begins.
    """
    tf = tensorflow()
    threads = threads or usable_cores()
    fitting = [size for size in range(1, CHUNK + 1) if rows % size == 0]
    # A batch of whole chunks saves a copy; chunks that are too small cost more than that.
    size = fitting[-1] if whole_chunks or 4 * fitting[-1] >= min(rows, CHUNK) else CHUNK
    # No Python here waits to become a graph, and to look for some takes seconds.
    as_it_is = tf.autograph.experimental.do_not_convert(chunk)
    chunks = elements.batch(size).interleave(
        as_it_is, cycle_length=threads, num_parallel_calls=threads, deterministic=True
    )
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1  # a chunk stays on its thread
    whole = chunks if size == rows else chunks.rebatch(rows)
    return whole.with_options(options).prefetch(2)


def _array_chunk(source: ArraySource, views: Views, positions: Any, examples: Any) -> Any:
    """A chunk of decoded images, as a data set of one element."""
    tf = tensorflow()
    # TensorFlow keeps the function for as long as the process lives; the images need not stay.
    known = weakref.ref(source)

    def take(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        there = known()
        assert there is not None, "the data set holds it"
        return there.images[examples], there.labels[examples]

    images, labels = tf.numpy_function(take, [examples], (tf.uint8, tf.int32), stateful=False)
    images = tf.ensure_shape(images, (None, *source.images.shape[1:]))
    rows = tf.data.Dataset.from_tensor_slices((images, positions))
    cut = rows.map(views.from_pixels).batch(tf.size(positions, tf.int64))
    return cut.map(lambda pixels: _element(views, positions, pixels, labels, tf.zeros_like(labels)))


def _encoded_chunk(
    read: Read,
    views: Views,
    positions: Any,
    examples: Any,
    repair: "Repair",
    replacement: Replacement | None,
    attempts: int,
) -> Any:
    """A chunk of encoded images, as a data set of one element."""
    tf = tensorflow()

    def as_array(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = read(examples)
        return np.array([*images, None], object)[:-1], labels  # so that one image is an array too

    def mend(
        pixels: Any, rows: Any, positions: Any, labels: Any, examples: Any
    ) -> tuple[np.ndarray, ...]:
        def candidate(row: int, attempt: int) -> tuple[bytes, int]:
            example = int(examples[row])
            if attempt and replacement is not None:
                example = replacement(int(positions[row]), attempt)
            images, labels = read(np.array([example]))
            return images[0], int(labels[0])

        return repair(pixels, rows, positions, labels, candidate, attempts)

    images, labels = tf.numpy_function(as_array, [examples], (tf.string, tf.int32), stateful=False)
    return decoded(views, images, positions, labels, mend, extra=[examples])


def decoded(
    views: Views,
    images: Any,
    positions: Any,
    labels: Any,
    mend: Callable[..., tuple],
    extra: Sequence[Any] = (),
) -> Any:
    """The views of a chunk of encoded images, as a data set of one element.

    Args:
        views: what is cut from each.
        images, positions, labels: of the chunk.
        mend: called in Python if some image cannot be decoded natively, with the pixels of the
            others, their row numbers, all positions and labels, and what is ``extra``; returns
            pixels, labels, and how many examples were left out, of all rows.
    """
    tf = tensorflow()
    images, labels = tf.ensure_shape(images, (None,)), tf.ensure_shape(labels, (None,))
    count = tf.size(positions, tf.int64)
    rows = tf.data.Dataset.from_tensor_slices((images, positions, tf.range(count)))
    cut = rows.map(lambda image, position, row: (views.from_bytes(image, position), row))
    none = tf.zeros((0, *views.shape), tf.uint8), tf.zeros((0,), tf.int64)
    good = cut.ignore_errors().batch(count).concatenate(tf.data.Dataset.from_tensors(none)).take(1)

    def mended(pixels: Any, rows: Any) -> tuple:
        given = [pixels, rows, positions, labels, *extra]
        return tuple(tf.numpy_function(mend, given, (tf.uint8, tf.int32, tf.int32)))

    def whole(pixels: Any, rows: Any) -> dict[str, Any]:
        found = tf.cond(
            tf.size(rows, tf.int64) == count,
            lambda: (pixels, labels, tf.zeros_like(labels)),
            lambda: mended(pixels, rows),
        )
        return _element(views, positions, *found)

    return good.map(whole)


def _element(views: Views, positions: Any, pixels: Any, labels: Any, skipped: Any) -> dict:
    tf = tensorflow()
    return {
        "views": tf.ensure_shape(pixels, (None, *views.shape)),
        "position": positions,
        "label": tf.ensure_shape(labels, (None,)),
        "attempt": tf.ensure_shape(skipped, (None,)),
    }


class Repair:
    """Fills in the rows of a chunk whose images cannot be decoded natively."""

    def __init__(self, views: Views):
        tf = tensorflow()
        self._views = views
        encoded, position = tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int64)
        pixels = tf.TensorSpec((None, None, views.channels), tf.uint8)
        self._from_bytes = tf.function(views.from_bytes, input_signature=[encoded, position])
        self._from_pixels = tf.function(views.from_pixels, input_signature=[pixels, position])

    def __call__(
        self,
        good_pixels: UInt8[np.ndarray, "good views height width channels"],
        good: Int[np.ndarray, " good"],
        positions: Int[np.ndarray, " rows"],
        labels: Int[np.ndarray, " rows"],
        candidate: Candidate,
        attempts: int,
    ) -> tuple[
        UInt8[np.ndarray, "rows views height width channels"],
        Int32[np.ndarray, " rows"],
        Int32[np.ndarray, " rows"],
    ]:
        """Views and labels of all rows, and how many candidates each had to leave out.

        Args:
            good_pixels, good: views that are there already, and their rows.
            positions, labels: of all rows.
            candidate: the image for a row at each attempt; the first is the one that failed.
            attempts: candidates of a row; if all of them fail it is black.
        """
        pixels = np.zeros((len(positions), *self._views.shape), np.uint8)
        pixels[good], labels = good_pixels, labels.astype(np.int32, copy=True)
        skipped = np.zeros(len(positions), np.int32)
        for row in np.setdiff1d(np.arange(len(positions)), good):
            labels[row], skipped[row] = -1, attempts
            for attempt in range(attempts):
                encoded, label = candidate(int(row), attempt)
                found = self._cut(encoded, positions[row], natively=attempt > 0)
                if found is not None:
                    pixels[row], labels[row], skipped[row] = found, label, attempt
                    break
        return pixels, labels, skipped

    def _cut(self, encoded: bytes, position: np.int64, *, natively: bool) -> np.ndarray | None:
        """Views of an encoded image, or None if it cannot be decoded."""
        views = self._views
        try:
            if natively:
                return self._from_bytes(encoded, position).numpy()
        except (tensorflow().errors.OpError, UnicodeDecodeError):
            pass  # the second, where an error's message quotes the bytes
        try:
            image = pillow_pixels(
                encoded, views.channels, views.max_pixels, views.exif, views.value_range
            )
        except Exception:  # Pillow raises every kind; all say that this is no image
            return None
        return self._from_pixels(image, position).numpy()
