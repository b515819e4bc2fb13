"""The tf.data part of the input pipeline, which reads, decodes and crops images in chunks.

Each chunk of up to 64 images is decoded and cropped by one thread of tf.data. Decoding and cropping
run Python only for EXIF orientations and for images that TensorFlow cannot decode. Pillow decodes
the images that TensorFlow cannot decode. In training, an image that neither TensorFlow nor Pillow
can decode is replaced by another image.
"""

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int, Int32, UInt8

from can_jax.data.decoding.decode import pillow_pixels
from can_jax.data.pipeline.views import Views
from can_jax.data.sources.base import Source
from can_jax.data.sources.block import Block, image_in, read_tensors
from can_jax.utils.cpu import usable_cores
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import tensorflow

CHUNK = 64  # the maximum number of images in a chunk; with 64, its fixed cost is negligible

# Maps (position, attempt), with attempts from 1 on, to the example to try instead.
Replacement = Callable[[int, int], int]
# Maps (row, attempt) to an encoded image and its label.
Candidate = Callable[[int, int], tuple[bytes, int]]
# Maps the indices of examples to their encoded images and labels.
Read = Callable[[np.ndarray], tuple[list[bytes], np.ndarray]]
Result = TypeVar("Result")


def batches(
    source: Source,
    views: Views,
    pairs: Any,
    rows: int,
    threads: int | None,
    replacement: Replacement | None = None,
    attempts: int = 1,
) -> Any:
    """Return a `tf.data.Dataset` of batches of views, in the order of ``pairs``.

    If ``replacement`` is given, an undecodable image is replaced by the example that
    ``replacement`` returns for its position. A replacement changes no other row of the batch.

    Args:
        source: The data source from which to read the images.
        views: The description of the views to crop from each image.
        pairs: A `tf.data.Dataset` of int64 pairs (position in the stream, index of the example).
        rows: The number of examples in a batch; the last batch may have fewer.
        threads: The number of tf.data threads; None for one per usable CPU core.
        replacement: A function of (position, attempt) that returns the index of the example to try
            instead of an undecodable one. Without ``replacement``, the undecodable example itself
            is read again.
        attempts: The maximum number of examples to try at a position, including the first.

    Returns:
        A data set of dicts: ``views`` uint8 (rows, views, height, width, channels), ``position``
        (rows,), ``label`` (rows,) and ``attempt`` (rows,). ``attempt`` is the number of undecodable
        examples that were skipped for a row; if it equals ``attempts``, the views are black.
    """
    repair = Repair(views)
    failed: list[UserError] = []

    def recording(read: Callable[[np.ndarray], Result]) -> Callable[[np.ndarray], Result]:
        def call(examples: np.ndarray) -> Result:
            try:
                return read(examples)
            except UserError as error:
                failed.append(error)
                raise

        return call

    read, read_block = recording(source.read), recording(source.read_block)

    def chunk(positions: Any, examples: Any, *contents: Any) -> Any:
        if source.images is not None:
            return _array_chunk(source, views, positions, examples)
        block = Block(*contents) if contents else read_tensors(read_block, examples)
        mend = _mend(read, repair, replacement, attempts)
        return decoded(views, block, positions, block.labels, mend, extra=[examples])

    def read_first(positions: Any, examples: Any) -> tuple:
        return positions, examples, *read_tensors(read_block, examples)

    first = (read_first, source.chunks_ahead) if source.chunks_ahead else None
    dataset = in_parallel(pairs, chunk, rows, threads, first=first)
    dataset.source = source  # keeps the source alive; `_array_chunk` refers to it weakly
    dataset.rows, dataset.failed = rows, failed
    return dataset


def reads(source: Source, pairs: Any, rows: int, threads: int | None) -> Any:
    """Return a `tf.data.Dataset` that reads the same images as `batches` without decoding them.

    Unlike the data set of `batches`, this one does not read chunks of a remote source ahead.

    Returns:
        A data set of int64 arrays (rows,): the size in bytes of each image of a batch.
    """

    def chunk(positions: Any, examples: Any) -> Any:
        block = read_tensors(source.read_block, examples)
        return tensorflow().data.Dataset.from_tensors(block.length)

    dataset = in_parallel(pairs, chunk, rows, threads)
    dataset.source = source
    return dataset


def elements(dataset: Any) -> Iterator[dict[str, np.ndarray]]:
    """Yield the elements of a data set as NumPy arrays, and raise the original error if reading
    fails.

    Args:
        dataset: The data set, with the additional attributes ``rows`` and ``failed``. ``rows`` is
            the batch size. ``failed`` is the list of `UserError` exceptions raised by the data
            set's Python functions. The list is needed because tf.data wraps such exceptions, or
            mistakes them for the end of the data.

    Raises:
        UserError: The first error in ``dataset.failed``.
        tf.errors.OpError: TensorFlow raised an error, and ``dataset.failed`` is empty.
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
            break  # an error may have truncated the last batch
        yield batch
    if dataset.failed:
        raise dataset.failed[0]


def in_parallel(
    elements: Any,
    chunk: Callable[..., Any],
    rows: int,
    threads: int | None,
    *,
    first: tuple[Callable[..., Any], int] | None = None,
    grouped: bool = False,
) -> Any:
    """Apply ``chunk`` to groups of elements in parallel, and return the results in batches of
    ``rows`` examples.

    Args:
        elements: The `tf.data.Dataset` to process; its elements are single examples unless
            ``grouped`` is True.
        chunk: A function that maps a group of elements to a `tf.data.Dataset` with one element, the
            processed group. Each group is processed by ``chunk`` in a single thread.
        rows: The number of examples in a batch.
        threads: The number of tf.data threads; None for one per usable CPU core.
        first: A function that preprocesses a group for ``chunk``, and the number of threads that
            run this function; None to skip preprocessing. The function may block, for example while
            it reads from a remote store.
        grouped: Whether the elements already are groups of examples, possibly of different sizes.
    """
    tf = tensorflow()
    threads = threads or usable_cores()
    fitting = [size for size in range(1, CHUNK + 1) if rows % size == 0]
    # Chunks that divide a batch save a copy, but very small chunks cost more than they save.
    size = fitting[-1] if 4 * fitting[-1] >= min(rows, CHUNK) else CHUNK
    # The functions need no conversion by AutoGraph, which takes seconds.
    unconverted = tf.autograph.experimental.do_not_convert
    groups, first_threads = elements if grouped else elements.batch(size), 0
    if first is not None:
        preprocess, first_threads = first
        groups = groups.map(
            unconverted(preprocess), num_parallel_calls=first_threads, deterministic=True
        )
    chunks = groups.interleave(
        unconverted(chunk), cycle_length=threads, num_parallel_calls=threads, deterministic=True
    )
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads + first_threads
    options.threading.max_intra_op_parallelism = 1  # a chunk stays on its thread
    # Every number of threads and buffers is set, so there is nothing to tune. The tuner's thread
    # sometimes misses that the data set is closed, and closing then takes up to a minute.
    options.autotune.enabled = False
    whole = chunks if size == rows and not grouped else chunks.rebatch(rows)
    return whole.with_options(options).prefetch(2)


def _array_chunk(source: Source, views: Views, positions: Any, examples: Any) -> Any:
    """Return a data set with one element: the views of a chunk of images from an in-memory
    array."""
    tf = tensorflow()
    # TensorFlow never releases the function, so the function must not keep the images alive.
    source_ref = weakref.ref(source)
    assert source.images is not None
    shape = source.images.shape[1:]

    def take(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        alive = source_ref()
        assert alive is not None, "the data set keeps its source alive"
        assert alive.images is not None
        assert alive.labels is not None
        return alive.images[examples], alive.labels[examples]

    images, labels = tf.numpy_function(take, [examples], (tf.uint8, tf.int32), stateful=False)
    images = tf.ensure_shape(images, (None, *shape))
    rows = tf.data.Dataset.from_tensor_slices((images, positions))
    cut = rows.map(views.from_pixels).batch(tf.size(positions, tf.int64))
    return cut.map(lambda pixels: _element(views, positions, pixels, labels, tf.zeros_like(labels)))


def _mend(
    read: Read, repair: "Repair", replacement: Replacement | None, attempts: int
) -> Callable[..., tuple[np.ndarray, ...]]:
    """Return the function that `decoded` calls if TensorFlow cannot decode an image of a chunk."""

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

    return mend


def decoded(
    views: Views,
    images: Any,
    positions: Any,
    labels: Any,
    mend: Callable[..., tuple],
    extra: Sequence[Any] = (),
) -> Any:
    """Return a data set with one element: the views of a chunk of encoded images.

    Args:
        views: The description of the views to crop from each image.
        images: The encoded images, as a string tensor or as a `Block` of tensors.
        positions, labels: The stream position and label of each example.
        mend: A Python function that is called only if TensorFlow cannot decode an image. ``mend``
            takes the views of the decoded images, the indices of these images in the chunk,
            ``positions``, ``labels`` and each tensor in ``extra``. ``mend`` returns the views,
            label and number of skipped examples of every image in the chunk.
        extra: Further tensors to pass to ``mend``.
    """
    tf = tensorflow()
    labels = tf.ensure_shape(labels, (None,))
    count = tf.size(positions, tf.int64)
    block = isinstance(images, Block)
    columns = (images.start, images.length) if block else (tf.ensure_shape(images, (None,)),)
    rows = tf.data.Dataset.from_tensor_slices((positions, tf.range(count), *columns))
    from_bytes, _ = _traced(views)

    def cut_one(position: Any, row: Any, *image: Any) -> tuple:
        encoded = image_in(images.data, *image) if block else image[0]
        return from_bytes(encoded, position), row

    cut = rows.map(cut_one)
    none = tf.zeros((0, *views.shape), tf.uint8), tf.zeros((0,), tf.int64)
    good = cut.ignore_errors().batch(count).concatenate(tf.data.Dataset.from_tensors(none)).take(1)

    def mended(pixels: Any, rows: Any) -> tuple:
        given = [pixels, rows, positions, labels, *extra]
        return tuple(tf.numpy_function(mend, given, (tf.uint8, tf.int32, tf.int32)))

    def whole(pixels: Any, rows: Any) -> dict[str, Any]:
        result = tf.cond(
            tf.size(rows, tf.int64) == count,
            lambda: (pixels, labels, tf.zeros_like(labels)),
            lambda: mended(pixels, rows),
        )
        return _element(views, positions, *result)

    return good.map(whole)


def _element(views: Views, positions: Any, pixels: Any, labels: Any, skipped: Any) -> dict:
    """Return the views, positions, labels and attempts of one chunk as a dict; see `batches`."""
    tf = tensorflow()
    return {
        "views": tf.ensure_shape(pixels, (None, *views.shape)),
        "position": positions,
        "label": tf.ensure_shape(labels, (None,)),
        "attempt": tf.ensure_shape(skipped, (None,)),
    }


@functools.lru_cache(maxsize=16)
def _traced(views: Views) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the methods `from_bytes` and `from_pixels` of ``views``, traced as `tf.function`.

    Data sets with equal ``views`` share the traced functions, since tracing takes about a second.
    AutoGraph is disabled, because its conversion takes seconds, and `from_bytes` and `from_pixels`
    do not need it.
    """
    tf = tensorflow()
    encoded, position = tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int64)
    pixels = tf.TensorSpec((None, None, views.channels), tf.uint8)
    function = functools.partial(tf.function, autograph=False)
    return (
        function(views.from_bytes, input_signature=[encoded, position]),
        function(views.from_pixels, input_signature=[pixels, position]),
    )


class Repair:
    """A callable that fills in those rows of a chunk that TensorFlow could not decode.

    Args:
        views: The description of the views to crop from each image.
    """

    def __init__(self, views: Views):
        self._views = views
        self._from_bytes, self._from_pixels = _traced(views)

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
        """Return the views and the labels of all rows, and the number of candidates that failed for
        each row.

        Args:
            good_pixels, good: The views of the images that TensorFlow decoded, and the rows of
                these images in the chunk.
            positions, labels: The stream position and the label of each row.
            candidate: A function of (row, attempt) that returns the encoded image to try and its
                label. For attempt 0, ``candidate`` returns the image that TensorFlow could not
                decode.
            attempts: The maximum number of candidates to try for a row. If all candidates fail, the
                views are black and the label is -1.
        """
        pixels = np.zeros((len(positions), *self._views.shape), np.uint8)
        pixels[good], labels = good_pixels, labels.astype(np.int32, copy=True)
        skipped = np.zeros(len(positions), np.int32)
        for row in np.setdiff1d(np.arange(len(positions)), good):
            labels[row], skipped[row] = -1, attempts
            for attempt in range(attempts):
                encoded, label = candidate(int(row), attempt)
                cropped = self._cut(encoded, positions[row], natively=attempt > 0)
                if cropped is not None:
                    pixels[row], labels[row], skipped[row] = cropped, label, attempt
                    break
        return pixels, labels, skipped

    def _cut(self, encoded: bytes, position: np.int64, *, natively: bool) -> np.ndarray | None:
        """Return the views of an encoded image, or None if it cannot be decoded.

        Args:
            encoded: The bytes of the image file.
            position: The position in the stream, which seeds the crops.
            natively: Whether to try TensorFlow before Pillow; otherwise only Pillow is used.
        """
        views = self._views
        if not encoded:
            return None
        if natively:
            try:
                return self._from_bytes(encoded, position).numpy()
            except (tensorflow().errors.OpError, UnicodeDecodeError):
                pass  # UnicodeDecodeError is raised for messages that quote bytes of the file
        try:
            image = pillow_pixels(
                encoded, views.channels, views.max_pixels, views.exif, views.value_range
            )
        except Exception:  # Pillow raises many types of exception for a broken image
            return None
        return self._from_pixels(image, position).numpy()
