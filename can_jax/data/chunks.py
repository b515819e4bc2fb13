"""The host's work, where tf.data does it: read, decode and cut a few images at a time.

A chunk of images goes through one thread. Only if one of them cannot be decoded, the chunk is done
again image by image in Python, which finds out which it was, tries Pillow, and then puts another
image in its place.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

from can_jax.data.decode import pillow_pixels
from can_jax.data.source import ArraySource, EncodedSource, Source
from can_jax.data.views import Views
from can_jax.tf import tensorflow

CHUNK = 16  # images: enough that what is done once a chunk costs little

# (positions, attempt) to the examples there: attempt 0, and those that may replace them.
ExamplesAt = Callable[[Any, int], Any]
# (row, attempt) to an encoded image and its label.
Candidate = Callable[[int, int], tuple[bytes, int]]


def batches(
    source: Source,
    views: Views,
    positions: Any,
    examples_at: ExamplesAt,
    attempts: int,
    rows: int,
    threads: int | None,
) -> Any:
    """Batches of views, in the order of the positions.

    An image that cannot be decoded is replaced by another that depends on the position alone, so
    the stream is the same on every machine and no other row moves.

    Args:
        source: of the images.
        views: what is cut from each.
        positions: `tf.data.Dataset` of int64 places in the stream.
        examples_at: the examples at some places.
        attempts: how many examples are tried at a place.
        rows: of a batch; the last one may have fewer.
        threads: of tf.data; by default one a core.

    Returns:
        `tf.data.Dataset` of dicts: ``views`` uint8 (rows, views, height, width, channels),
        ``position`` (rows,), ``label`` (rows,), and ``attempt`` (rows,), the number of examples
        that were left out; if that is ``attempts``, the views are black.
    """
    repair = Repair(views)

    def chunk(places: Any) -> Any:
        if isinstance(source, ArraySource):
            return _array_chunk(source, views, places, examples_at)
        return _encoded_chunk(source, views, places, examples_at, repair, attempts)

    return in_parallel(positions, chunk, rows, threads)


def in_parallel(elements: Any, chunk: Callable[..., Any], rows: int, threads: int | None) -> Any:
    """Batches of ``rows`` elements; ``chunk`` makes a few of them at a time, in one thread."""
    tf = tensorflow()
    threads = threads or os.cpu_count() or 1
    # Where whole chunks make a batch of few rows, a copy is saved.
    size = CHUNK if rows % CHUNK == 0 else max(math.gcd(rows, CHUNK), min(rows, CHUNK))
    chunks = elements.batch(size).interleave(
        chunk, cycle_length=threads, num_parallel_calls=threads, deterministic=True
    )
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1  # a chunk stays on its thread
    whole = chunks if size == rows else chunks.rebatch(rows)
    return whole.with_options(options).prefetch(2)


def _array_chunk(source: ArraySource, views: Views, positions: Any, examples_at: ExamplesAt) -> Any:
    """A chunk of decoded images, as a data set of one element."""
    tf = tensorflow()

    def take(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return source.images[examples], source.labels[examples]

    images, labels = tf.numpy_function(
        take, [examples_at(positions, 0)], (tf.uint8, tf.int32), stateful=False
    )
    images = tf.ensure_shape(images, (None, *source.images.shape[1:]))
    rows = tf.data.Dataset.from_tensor_slices((images, positions, labels))
    cut = rows.map(lambda image, place, label: (views.from_pixels(image, place), place, label))
    return cut.batch(tf.size(positions, tf.int64)).map(lambda *row: _element(views, *row))


def _encoded_chunk(
    source: EncodedSource,
    views: Views,
    positions: Any,
    examples_at: ExamplesAt,
    repair: "Repair",
    attempts: int,
) -> Any:
    """A chunk of encoded images, as a data set of one element."""
    tf = tensorflow()

    def read(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = source.read(examples)
        return np.array([*images, None], object)[:-1], labels  # so that one image is an array too

    def again(positions: np.ndarray) -> tuple[np.ndarray, ...]:
        def candidate(row: int, attempt: int) -> tuple[bytes, int]:
            place = tf.constant(positions[row : row + 1])
            images, labels = source.read(np.asarray(examples_at(place, attempt)))
            return images[0], int(labels[0])

        return repair(positions, candidate, attempts)

    def otherwise() -> Any:
        return tf.numpy_function(again, [positions], (tf.uint8, tf.int32, tf.int32))

    images, labels = tf.numpy_function(
        read, [examples_at(positions, 0)], (tf.string, tf.int32), stateful=False
    )
    return decoded_or(views, images, positions, labels, otherwise)


def decoded_or(
    views: Views, images: Any, positions: Any, labels: Any, otherwise: Callable[[], Any]
) -> Any:
    """A data set of one element: the views of all images, or if one of them cannot be decoded what
    ``otherwise`` gives, (views, labels, skipped)."""
    tf = tensorflow()
    images, labels = tf.ensure_shape(images, (None,)), tf.ensure_shape(labels, (None,))
    rows = tf.data.Dataset.from_tensor_slices((images, positions, labels))
    cut = rows.map(lambda image, place, label: (views.from_bytes(image, place), place, label))
    whole = cut.batch(tf.size(positions, tf.int64), drop_remainder=True).ignore_errors()

    def repaired(positions: Any) -> dict[str, Any]:
        pixels, labels, skipped = otherwise()
        return _element(views, pixels, positions, labels, skipped)

    # What is concatenated is not begun if there is an element before it.
    again = tf.data.Dataset.from_tensors(positions).map(repaired)
    return whole.map(lambda *row: _element(views, *row)).concatenate(again).take(1)


def _element(views: Views, pixels: Any, positions: Any, labels: Any, skipped: Any = None) -> dict:
    tf = tensorflow()
    skipped = tf.zeros_like(labels) if skipped is None else skipped
    return {
        "views": tf.ensure_shape(pixels, (None, *views.shape)),
        "position": positions,
        "label": tf.ensure_shape(labels, (None,)),
        "attempt": tf.ensure_shape(skipped, (None,)),
    }


class Repair:
    """Does a chunk again, image by image, when something in it cannot be decoded."""

    def __init__(self, views: Views):
        tf = tensorflow()
        self._views = views
        encoded, position = tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int64)
        pixels = tf.TensorSpec((None, None, views.channels), tf.uint8)
        self._from_bytes = tf.function(views.from_bytes, input_signature=[encoded, position])
        self._from_pixels = tf.function(views.from_pixels, input_signature=[pixels, position])

    def __call__(
        self, positions: Int[np.ndarray, " rows"], candidate: Candidate, attempts: int
    ) -> tuple[
        UInt8[np.ndarray, "rows views height width channels"],
        Int32[np.ndarray, " rows"],
        Int32[np.ndarray, " rows"],
    ]:
        """Views, labels, and how many candidates each row had to leave out."""
        pixels = np.zeros((len(positions), *self._views.shape), np.uint8)
        labels = np.full(len(positions), -1, np.int32)
        skipped = np.full(len(positions), attempts, np.int32)
        for row, position in enumerate(positions):
            for attempt in range(attempts):
                encoded, label = candidate(row, attempt)
                found = self._cut(encoded, position)
                if found is not None:
                    pixels[row], labels[row], skipped[row] = found, label, attempt
                    break
        return pixels, labels, skipped

    def _cut(self, encoded: bytes, position: np.int64) -> np.ndarray | None:
        """Views of an encoded image, or None if neither decoder can read it."""
        views = self._views
        try:
            return self._from_bytes(encoded, position).numpy()
        except (tensorflow().errors.OpError, UnicodeDecodeError):
            pass  # the second, where an error's message quotes the bytes
        try:
            image = pillow_pixels(encoded, views.channels, views.max_pixels, views.exif)
        except Exception:  # Pillow raises every kind; all say that this is no image
            return None
        return self._from_pixels(image, position).numpy()
