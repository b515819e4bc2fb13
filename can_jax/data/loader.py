"""From a source to batches: crops by tf.data on the host, sharded arrays on the devices."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from can_jax.augment.crops import centre_crop, crop_and_resize, random_boxes
from can_jax.data.batch import Batch
from can_jax.data.order import example_at
from can_jax.data.source import ArraySource, EncodedSource, Source
from can_jax.errors import UserError
from can_jax.parallel.mesh import batch_sharding, to_global
from can_jax.tf import tensorflow

# How many examples are tried at one place of the stream before the run gives up.
DECODE_ATTEMPTS = 16


def decode(encoded: Any, channels: int) -> Any:
    """An encoded image as uint8 (height, width, channels); of an animation the first frame."""
    tf = tensorflow()
    image = tf.io.decode_image(encoded, channels, expand_animations=False)
    return tf.ensure_shape(image, (None, None, channels))


def _row_positions(config: ConfigDict, rows: tuple[int, int], step: Any) -> Any:
    """Positions in the stream of this process's rows at a step."""
    tf = tensorflow()
    return step * config.batch_size + tf.range(*rows, dtype=tf.int64)


def _crops(config: ConfigDict, images: Any, positions: Any) -> Any:
    """The views of images of one size: (images, views, *size, channels)."""
    tf = tensorflow()
    augment, (height, width) = config.augment, config.data.image_size
    aspect = tuple(ratio * width / height for ratio in augment.crop_aspect)
    size = tf.unstack(tf.shape(images)[1:3])
    area = augment.crop_area
    boxes = random_boxes(config.seed, positions, size, augment.views, area, aspect)
    return crop_and_resize(images, boxes, (height, width))


def _from_arrays(config: ConfigDict, source: ArraySource, steps: Any, rows: tuple[int, int]) -> Any:
    """Batches cut from memory, all rows at once."""
    tf = tensorflow()

    def assemble(step: Any) -> dict[str, Any]:
        positions = _row_positions(config, rows, step)
        examples = example_at(positions, source.examples, config.seed)
        images, labels = tf.numpy_function(
            lambda index: (source.images[index], source.labels[index]),
            [examples],
            (tf.uint8, tf.int32),
            stateful=False,
        )
        images = tf.ensure_shape(images, (rows[1] - rows[0], *source.images.shape[1:]))
        views = _crops(config, images, positions)
        attempts = tf.zeros_like(positions, tf.int32)
        return {"views": views, "position": positions, "label": labels, "attempt": attempts}

    return steps.map(assemble, num_parallel_calls=config.data.threads or tf.data.AUTOTUNE)


def _from_files(
    config: ConfigDict, source: EncodedSource, steps: Any, rows: tuple[int, int]
) -> Any:
    """Batches of images decoded one by one, each only once for all of its views.

    An image that cannot be decoded is replaced by another that depends on the position alone, so
    the stream is the same on every machine and no other row moves.
    """
    tf = tensorflow()
    size, channels = config.data.image_size, config.data.channels

    def attempt_at(position: Any, attempt: Any) -> dict[str, Any]:
        example = example_at(position, source.examples, config.seed, tf.cast(attempt, tf.int32))
        encoded, label = source.load(example)
        views = _crops(config, decode(encoded, channels)[None], position[None])[0]
        views = tf.ensure_shape(views, (config.augment.views, *size, channels))
        return {"views": views, "position": position, "label": label, "attempt": attempt}

    def first_good(position: Any) -> Any:
        attempts = tf.data.Dataset.range(DECODE_ATTEMPTS, output_type=tf.int32)
        good = attempts.map(lambda attempt: attempt_at(position, attempt)).ignore_errors()
        none = {
            "views": tf.zeros((config.augment.views, *size, channels), tf.uint8),
            "position": position,
            "label": -1,
            "attempt": DECODE_ATTEMPTS,
        }
        return good.concatenate(tf.data.Dataset.from_tensors(none)).take(1)

    threads = config.data.threads or os.cpu_count() or 1
    positions = steps.flat_map(
        lambda step: tf.data.Dataset.from_tensor_slices(_row_positions(config, rows, step))
    )
    images = positions.interleave(
        first_good, cycle_length=threads, num_parallel_calls=threads, deterministic=True
    )
    return images.batch(rows[1] - rows[0], drop_remainder=True)


class TrainingLoader(Iterator[Batch]):
    """The batches of a run from a step on, as global arrays split over the mesh.

    Attributes:
        skipped: images of this process so far that could not be decoded.
    """

    def __init__(
        self, config: ConfigDict, source: Source, mesh: Mesh, first_step: int, total_steps: int
    ):
        tf = tensorflow()
        processes, process = jax.process_count(), jax.process_index()
        local = config.batch_size // processes
        rows = (process * local, (process + 1) * local)
        steps = tf.data.Dataset.range(first_step, total_steps)
        make: Any = _from_arrays if isinstance(source, ArraySource) else _from_files
        dataset = make(config, source, steps, rows)
        options = tf.data.Options()
        options.deterministic = True
        if config.data.threads:
            options.threading.private_threadpool_size = config.data.threads
        self._batches = dataset.with_options(options).prefetch(2).as_numpy_iterator()
        self._config = config
        self._source = source
        self._sharding = batch_sharding(mesh)
        self._named: set[int] = set()
        self.skipped = 0

    def __next__(self) -> Batch:
        host = next(self._batches)
        for row in np.flatnonzero(host["attempt"]):
            self._report(int(host["position"][row]), int(host["attempt"][row]))
        batch = Batch(
            views=host["views"],
            position=host["position"].astype(np.uint32),
            label=host["label"],
        )
        return Batch(*(to_global(self._sharding, array) for array in batch))

    def _report(self, position: int, attempts: int) -> None:
        """Count images that were skipped at a position, and name each of them once."""
        assert not isinstance(self._source, ArraySource)
        tf = tensorflow()
        place = tf.constant(position, tf.int64)
        for attempt in range(attempts):
            example = int(example_at(place, self._source.examples, self._config.seed, attempt))
            self.skipped += 1
            if example not in self._named:
                self._named.add(example)
                logging.warning("skipped, cannot be decoded: %s", self._source.describe(example))
        if attempts == DECODE_ATTEMPTS:
            raise UserError(
                f"none of {attempts} images drawn at position {position} can be decoded as "
                f"{self._config.data.channels} channels; the last was "
                f"{self._source.describe(example)}"
            )


class EvaluationImages(NamedTuple):
    """Images as an evaluation sees them: centre crops, in a fixed order."""

    images: UInt8[np.ndarray, "examples height width channels"]
    labels: Int[np.ndarray, " examples"]  # -1 where unknown


def evaluation_images(
    config: ConfigDict, source: Source, count: int, *, labelled: bool
) -> EvaluationImages:
    """Up to ``count`` examples spread over the source, the same ones each time.

    Images that cannot be decoded are left out, with ``labelled`` also those without a label.
    """
    tf = tensorflow()
    chosen = np.random.default_rng(0).permutation(source.examples)
    if labelled and source.labels is not None:
        chosen = chosen[source.labels[chosen] >= 0]
    chosen = np.sort(chosen[:count])
    size, channels = config.data.image_size, config.data.channels

    def load(index: Any) -> tuple[Any, Any]:
        if isinstance(source, ArraySource):
            image = tf.numpy_function(source.images.__getitem__, [index], tf.uint8, stateful=False)
            image = tf.ensure_shape(image, source.images.shape[1:])
            return centre_crop(image, size), tf.gather(tf.constant(source.labels), index)
        encoded, label = source.load(index)
        return centre_crop(decode(encoded, channels), size), label

    examples = tf.data.Dataset.from_tensor_slices(chosen)
    examples = examples.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    pairs = list(examples.ignore_errors().as_numpy_iterator())
    images = np.stack([image for image, _ in pairs] or [np.zeros((*size, channels), np.uint8)])
    labels = np.array([label for _, label in pairs] or [-1], np.int32)
    kept = np.full(len(labels), bool(pairs)) & ((labels >= 0) | (not labelled))
    return EvaluationImages(images[kept], labels[kept])
