"""A benchmark of each stage of the host's input pipeline, compared with a Pillow baseline."""

import contextlib
import dataclasses
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from can_jax.benchmark.pillow import TwoViews, count_images, start_worker
from can_jax.data.decoding.decode import native_pixels, native_size
from can_jax.data.evaluation.examples import spread
from can_jax.data.pipeline import chunks
from can_jax.data.pipeline.training_loader import TrainingLoader, host_batches, order_of, places
from can_jax.data.pipeline.views import RandomViews
from can_jax.data.sources.base import Source
from can_jax.data.sources.registry import open_source
from can_jax.distributed.mesh import make_mesh
from can_jax.utils.cpu import usable_cores
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import tensorflow

SAMPLE = 512  # The maximum number of images that TensorFlow and Pillow decode.
FOREVER = 10**6  # More steps than any benchmark takes.
WARM_BATCHES = 2  # The minimum number of batches before the clock starts.

Turn = Callable[[float], float]  # Measures for some seconds; returns images per second.


def measure_input(config: ConfigDict, rounds: int, seconds: float) -> dict[str, float]:
    """Measure the throughput of each stage of the input pipeline, in images per second.

    Args:
        config: The resolved configuration, whose data source must hold encoded images.
        rounds: The number of rounds, each of which measures every stage once.
        seconds: The duration of each measurement in seconds.

    Returns:
        The median throughputs: ``reads_alone`` (of encoded images), ``decode_only``, ``crops`` (of
            decoded images), ``host_pipeline`` (from files to uint8 batches), ``to_device`` (to
            arrays on the devices) and ``pil_two_view`` (the Pillow baseline). ``python_limit`` is
            the reading throughput at which Python code fully occupies one core. Because only one
            thread at a time runs Python code, more cores do not raise ``python_limit``. The dict
            also holds ``threads``, ``image_size``, ``batch_size``, ``examples`` and ``rounds``.

    Raises:
        UserError: TensorFlow can decode none of the sampled images.
    """
    source = open_source(config.data, config.data.split)
    sample, _ = source.read(spread(source.examples, SAMPLE))
    encoded = [image for image in sample if _decodes(image, config)]
    if not encoded:
        raise UserError(
            "this benchmark requires JPEG, PNG or WebP files that TensorFlow can decode, but none "
            f"of {len(sample)} sampled images in {config.data.path} is such a file"
        )
    threads = config.data.threads or usable_cores()
    rates: dict[str, list[float]] = {}
    python: list[float] = []
    with contextlib.ExitStack() as stack:
        stages = {
            "reads_alone": _reads(config, source, python),
            "decode_only": _turn(_decoded(encoded, threads), 1),
            "crops": _turn(_cropped(config, encoded, threads), 1),
            "host_pipeline": _turn(_host(config, source), config.batch_size),
            "to_device": _to_device(config, source),
            "pil_two_view": _pillow(config, encoded, threads, stack),
        }
        for _ in range(rounds):
            for name, turn in stages.items():
                rates.setdefault(name, []).append(turn(seconds))
    rates["python_limit"] = python
    return {name: round(statistics.median(turns), 1) for name, turns in rates.items()} | {
        "threads": threads,
        "image_size": config.data.image_size[0],
        "batch_size": config.batch_size,
        "examples": source.examples,
        "rounds": rounds,
    }


def _mapped(dataset: Any, work: Callable[..., Any], threads: int) -> Any:
    """Repeat a `tf.data.Dataset` indefinitely, and apply ``work`` to each element in parallel."""
    tf = tensorflow()
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    mapped = dataset.repeat().map(work, num_parallel_calls=threads, deterministic=True)
    return mapped.with_options(options)


def _decoded(encoded: list[bytes], threads: int) -> Any:
    """Return a data set whose elements are decoded images."""
    tf = tensorflow()
    images = tf.data.Dataset.from_tensor_slices(encoded)
    return _mapped(images, lambda image: native_pixels(image, 3), threads)


def _cropped(config: ConfigDict, encoded: list[bytes], threads: int) -> Any:
    """Return a data set whose elements are the random views of a decoded image."""
    tf = tensorflow()
    views = RandomViews.from_config(config)
    decoded = [native_pixels(image, 3).numpy() for image in encoded[:32]]

    def take(index: np.integer) -> np.ndarray:
        return decoded[index % len(decoded)]

    def cut(index: Any) -> Any:
        image = tf.numpy_function(take, [index], tf.uint8, stateful=False)
        return views.from_pixels(tf.ensure_shape(image, (None, None, 3)), index)

    return _mapped(tf.data.Dataset.range(2**40), cut, threads)


def _decodes(image: bytes, config: ConfigDict) -> bool:
    try:
        native_size(image, config.data.max_pixels)
        native_pixels(image, 3, value_range=config.data.range)
    except (tensorflow().errors.OpError, UnicodeDecodeError):
        return False
    return True


def _reads(config: ConfigDict, source: Source, python: list[float]) -> Turn:
    """Return a function that measures the throughput of reading alone, in images per second.

    Args:
        config: The resolved configuration.
        source: The source to read.
        python: A list to which each measurement appends the number of images divided by the
            process's CPU seconds in user mode. Python code accounts for almost all CPU time in user
            mode. TensorFlow's `tf.data` takes only a few microseconds per chunk of images, and the
            operating system's copies of images count as system time.
    """
    rows = np.arange(config.batch_size)
    pairs = places(order_of(config.seed, source), (0, FOREVER), config.batch_size, rows)
    dataset = chunks.reads(source, pairs, len(rows), config.data.threads)
    return lambda seconds: _rate(iter(dataset), len(rows), seconds, python)


def _host(config: ConfigDict, source: Source) -> Any:
    """Return a data set of the batches that the host sends to the devices."""
    return host_batches(config, source, (0, FOREVER), np.arange(config.batch_size))


def _turn(dataset: Any, images: int) -> Turn:
    """Return a function that measures the images per second of a data set, whose elements hold
    ``images`` images each."""
    return lambda seconds: _rate(iter(dataset), images, seconds)


def _to_device(config: ConfigDict, source: Source) -> Turn:
    """Return a function that measures how many images per second reach the devices."""
    mesh = make_mesh(config.mesh)

    def turn(seconds: float) -> float:
        loader = TrainingLoader(config, source, mesh, 0, FOREVER)
        placed = (jax.block_until_ready(batch) for batch in loader)
        return _rate(placed, config.batch_size, seconds)

    return turn


def _rate(
    batches: Iterator[Any], images: int, seconds: float, of_user_time: list[float] | None = None
) -> float:
    """Measure the images per second of an iterator over batches of ``images`` images.

    Args:
        batches: The iterator over batches.
        images: The number of images in each batch.
        seconds: The duration of the measurement.
        of_user_time: A list to which the function appends the number of images divided by the
            process's CPU seconds in user mode; None for no list.
    """
    for _ in range(max(WARM_BATCHES, -(-128 // images))):
        next(batches)
    user = _user_seconds()
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        next(batches)
        count += images
    if of_user_time is not None:
        of_user_time.append(count / max(_user_seconds() - user, 1e-3))
    return count / elapsed


def _user_seconds() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def _pillow(
    config: ConfigDict, encoded: list[bytes], workers: int, stack: contextlib.ExitStack
) -> Turn:
    """Return a function that measures the Pillow baseline in ``workers`` processes.

    The processes return the number of images instead of the images, because a transfer of images
    would take time.
    """
    names = {field.name for field in dataclasses.fields(TwoViews)} - {"size"}
    settings = {name: config.augment[name] for name in names}
    views = TwoViews(size=config.data.image_size, **settings)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, start_worker, (encoded,))
    stack.enter_context(pool)

    def turn(seconds: float) -> float:
        futures = [pool.submit(count_images, views, seconds) for _ in range(workers)]
        return sum(count / elapsed for count, elapsed in (f.result() for f in futures))

    turn(0.1)  # Wait until the processes have started.
    return turn
