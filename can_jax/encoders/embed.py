"""Resumable extraction of the features of all images of a split to one file.

To bound memory, features are computed in parts of 4096 images and stored in the folder
`OUTPUT.parts`. When all parts are complete, they are merged into the output file. Pillow decodes
the images. Image files, arrays and tar files are read without TensorFlow.
"""

import csv
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from can_jax.checkpoint.identity import differences, read_identity, store_identity
from can_jax.data.decoding.array_bytes import ARRAY, decode_array
from can_jax.data.sources.base import Source
from can_jax.data.sources.registry import available_splits, open_source
from can_jax.encoders.encoder import Encoder, evaluated_encoder
from can_jax.encoders.feature_files import WRITERS, Part, Table, check_output
from can_jax.encoders.images import preprocess
from can_jax.utils.cpu import usable_cores
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.files import replacing
from can_jax.utils.workers import Workers

PART = 4096  # The number of images in a part, whose features take 16 MiB for a ViT-L.
# While parts are computed, `data.skip_limit` is checked only after this number of images.
LEAST = 256
# Keys of the block `data` on which images or labels depend, but which source fingerprints lack.
DECODING = ("exif_orientation", "max_pixels", "range", "image_key", "label_key")
Advance = Callable[[int, int], None]  # Called with the number of images done and of all images.


class ClusterEncoder(NamedTuple):
    """An encoder that each node of a Ray cluster opens.

    Attributes:
        address: The address of the cluster, as in `Workers`.
        checkpoint: The path of the weights, as in `open_encoder`.
        config: The resolved configuration of the evaluation.
    """

    address: str
    checkpoint: str
    config: ConfigDict

    def open(self) -> Encoder:
        """Open the encoder on the devices of this process.

        Raises:
            UserError: The weights cannot be read, or do not match ``config``.
        """
        return evaluated_encoder(self.checkpoint, self.config)


class Summary(NamedTuple):
    """The result of `embed`: the number of images written, the number skipped, and the feature
    width."""

    images: int
    skipped: int
    width: int


def chosen_split(data: ConfigDict, split: str | None) -> str:
    """Return the name of the split to read: ``split`` if it is given, otherwise the only split of
    the data set.

    If none of the splits `train`, `val` and `test` is found, return ``data.split``.

    Args:
        data: The validated config block `data`, which selects the data set.
        split: The name of the split; None selects the only split of the data set.

    Raises:
        UserError: ``split`` is None, and the data has several splits.
    """
    if split is not None:
        return split
    available = available_splits(data)
    if len(available) > 1:
        raise UserError(
            f"the data has the splits {', '.join(available)}: choose one with --split=NAME"
        )
    return available[0] if available else data.split


def embed(
    encoder: Encoder,
    data: ConfigDict,
    split: str | None,
    output: Path,
    features: str = "patches",
    advance: Advance = lambda done, total: None,
    cluster: ClusterEncoder | None = None,
) -> Summary:
    """Compute the features of all images of a split, and write them to a file with the names and
    labels of the images.

    Undecodable images are skipped, and listed with the reason in `OUTPUT.skipped.csv`. After an
    interruption, a call with the same arguments computes only the missing parts.

    Args:
        encoder: The pretrained encoder that computes the features.
        data: The validated config block `data`, which selects the data set.
        split: The name of the split; None selects the only split of the data set.
        output: The file to create, whose suffix selects the format: .parquet, .npz or .csv.
        features: The kind of features: ``patches``, ``all``, ``class`` or ``both``; see
            `Encoder.__call__`.
        advance: A function of (number of images done, number of all images) that is called after
            each batch, for example to show progress.
        cluster: A `ClusterEncoder` with the weights of ``encoder``, to compute the features on the
            nodes of a Ray cluster; None to compute them in this process.

    Raises:
        UserError: The output exists, has an unknown suffix, cannot be written, or is being written
            by another process. The data cannot be read, or has several splits while ``split`` is
            None. Too many images are undecodable, or the stored parts were computed with different
            settings.
    """
    check_output(output)
    name = chosen_split(data, split)
    source = open_source(data, name)
    identity = {
        "encoder": {"sha256": encoder.sha256, "path": str(encoder.path), "step": encoder.step},
        "model": encoder.model,
        "image_size": list(encoder.image_size),
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "features": features,
        "decoding": {name: data[name] for name in DECODING},
        "data": source.fingerprint() | {"split": name, "images_per_part": PART},
    }
    identity = json.loads(json.dumps(identity, default=str))
    folder = output.with_name(f"{output.name}.parts")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created: {one_line(error)}") from error
    lock = filelock.FileLock(folder / "lock")
    try:
        held = lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"{output} is being written by another process: wait until that process ends, or give "
            "another --output"
        ) from None
    with held:
        check_output(output)  # Another process may have written the output since the first check.
        _check_parts(folder, identity)
        here = Computation(encoder, source, data, features)
        compute: Callable[[range], Part] = functools.partial(here.part, advance=advance)
        workers = Workers()
        if cluster is not None:
            compute = functools.partial(part_on_node, cluster, name, features)
            workers = Workers(cluster=cluster.address)
        paths = _compute_parts(compute, workers, source.examples, data, folder, advance)
        table = Table(paths, source.label_names, identity)
        tally = _tally(paths)
        tally.check(data)
        _write_skipped(output, paths)
        if table.images:
            with replacing(output) as temporary:
                WRITERS[output.suffix](temporary, table)
        for path in sorted(folder.iterdir()):
            path.unlink()
        folder.rmdir()
    return Summary(table.images, tally.skipped, table.width)


def _check_parts(folder: Path, identity: dict[str, Any]) -> None:
    """Check that the stored parts were computed with the weights, data and settings in
    ``identity``.

    If the folder has no stored identity yet, ``identity`` is written to it. Keys that an older
    version of can_jax did not store are not compared.
    """
    stored = read_identity(epath.Path(folder))
    if stored is None:
        store_identity(epath.Path(folder), identity)
    elif lines := differences(identity | stored, identity):
        raise UserError(
            f"{folder} holds features of an interrupted call, whose settings differ from those of "
            f"this call: {lines[0]}; remove that folder, or give another --output"
        )


def _compute_parts(
    compute: Callable[[range], Part],
    workers: Workers,
    images: int,
    data: ConfigDict,
    folder: Path,
    advance: Advance,
) -> list[Path]:
    """Compute the missing parts, and return the paths of all parts in the order of the examples."""
    everything = range(images)
    ranges = [everything[start : start + PART] for start in everything[::PART]]
    paths = [folder / f"{examples.start:012d}.npz" for examples in ranges]
    todo = [number for number, path in enumerate(paths) if not path.exists()]
    done = images - sum(len(ranges[number]) for number in todo)
    advance(done, images)
    tally = _tally(path for path in paths if path.exists())
    for i, part in workers.results(compute, [ranges[number] for number in todo], gpu=True):
        part.save(paths[todo[i]])
        tally = tally.plus(part)
        if tally.images >= LEAST:
            tally.check(data)
        done += len(ranges[todo[i]])
        advance(done, images)
    return paths


class Computation:
    """The computation of features in one process.

    Args:
        encoder: The pretrained encoder.
        source: The images.
        data: The config block of the data set, which sets how images are decoded and cropped.
        features: The kind of features; see `Encoder.__call__`.
    """

    def __init__(self, encoder: Encoder, source: Source, data: ConfigDict, features: str):
        self._encoder, self._source, self._features = encoder, source, features
        self._data = data.copy_and_resolve_references()
        with self._data.unlocked(), self._data.ignore_type():
            self._data.update(image_size=encoder.image_size, channels=encoder.channels)

    def part(self, examples: range, advance: Advance = lambda done, total: None) -> Part:
        """Return the features of a range of examples."""
        with ThreadPoolExecutor(self._data.threads or usable_cores()) as pool:
            return Part.joined(list(self._batches(examples, pool, advance)))

    def _batches(
        self, examples: range, pool: ThreadPoolExecutor, advance: Advance
    ) -> Iterator[Part]:
        """Yield the features batch by batch, and decode the next batch in the background."""
        size = self._encoder.batch_size
        chunks = [examples[start : start + size] for start in range(0, len(examples), size)]
        load = functools.partial(_load, self._source, self._data, pool)
        loading: Future[_Loaded] | None = None
        with ThreadPoolExecutor(1) as ahead:
            for i, chunk in enumerate(chunks):
                loaded = (loading or ahead.submit(load, chunk)).result()
                if i + 1 < len(chunks):
                    loading = ahead.submit(load, chunks[i + 1])
                kept = np.array([isinstance(view, np.ndarray) for view in loaded.views])
                good = [view for view in loaded.views if isinstance(view, np.ndarray)]
                outputs = np.zeros((0, 0), np.float32)
                if good:
                    outputs = self._encoder(good, self._features)
                names = np.array([_name(self._source, int(example)) for example in chunk])
                reasons = [str(view) for view in loaded.views if not isinstance(view, np.ndarray)]
                yield Part(
                    outputs, loaded.labels[kept], names[kept], names[~kept], np.array(reasons, str)
                )
                advance(chunk[-1] + 1, self._source.examples)


_kept: dict[str, Any] = {}  # the computation of the last call on a node, and its arguments


def part_on_node(cluster: ClusterEncoder, split: str, features: str, examples: range) -> Part:
    """Return the features of a range of examples; keep the encoder open for the next call in this
    process."""
    arguments = (cluster, split, features)
    if _kept.get("arguments") != arguments:
        encoder = cluster.open()
        source = open_source(encoder.data, split)
        _kept["computation"] = Computation(encoder, source, encoder.data, features)
        _kept["arguments"] = arguments
    part: Part = _kept["computation"].part(examples)
    return part


class _Loaded(NamedTuple):
    """A decoded batch: the labels, and for each image a center crop or the reason why decoding
    failed."""

    views: list[Any]
    labels: np.ndarray


def _load(source: Source, data: ConfigDict, pool: ThreadPoolExecutor, examples: range) -> _Loaded:
    """Read and decode a range of examples, in the threads of a pool."""
    chosen = np.array(examples, np.int64)

    def view(image: Any) -> Any:
        try:
            if isinstance(image, bytes) and not image:
                return "the record is damaged"
            if isinstance(image, bytes) and image.startswith(ARRAY):
                image = decode_array(image)  # from an array source within a mixture
            return preprocess(image, data)
        except UserError as error:
            return one_line(error).removeprefix("the image cannot be decoded: ")

    if source.images is not None:
        images: list[Any] = list(source.images[chosen])
        labels = np.full(len(chosen), -1) if source.labels is None else source.labels[chosen]
    else:
        images, labels = source.read(chosen)
    return _Loaded(list(pool.map(view, images)), np.asarray(labels, np.int32))


def _name(source: Source, example: int) -> str:
    """Return the name of an example; for an image file, its path relative to the data directory.
    Bytes that are not UTF-8 are escaped."""
    root = getattr(source, "root", None)
    name = source.describe(example)
    name = name.removeprefix(f"{root}/") if root else name
    return name.encode(errors="backslashreplace").decode()  # CSV and Parquet are UTF-8.


class Tally(NamedTuple):
    """The number of images read, and how many of them are undecodable.

    Attributes:
        images: The number of images read.
        skipped: The number of undecodable images.
        first: The name of the first undecodable image, and the reason why decoding failed.
    """

    images: int = 0
    skipped: int = 0
    first: str = ""

    def plus(self, part: Part) -> "Tally":
        """Return a new tally that also counts the images of ``part``."""
        skipped = len(part.broken)
        first = self.first or (f"{part.broken[0]}: {part.reasons[0]}" if skipped else "")
        return Tally(self.images + skipped + len(part.names), self.skipped + skipped, first)

    def check(self, data: ConfigDict) -> None:
        """Check that the fraction of undecodable images does not exceed ``data.skip_limit``.

        Raises:
            UserError: The fraction exceeds the limit.
        """
        if self.skipped > data.skip_limit * self.images:
            raise UserError(
                f"{self.skipped} of {self.images} images cannot be decoded, a larger fraction "
                f"than data.skip_limit={data.skip_limit}; the first of them is {self.first}"
            )


def _tally(paths: Iterable[Path]) -> Tally:
    """Return the tally of stored parts."""
    tally = Tally()
    for path in paths:
        tally = tally.plus(Part.load(path))
    return tally


def _write_skipped(output: Path, paths: list[Path]) -> None:
    """Write `OUTPUT.skipped.csv`, which lists each undecodable image with the reason.

    If all images were decoded, no file is written, and an existing file is removed.
    """
    listing, rows = output.with_name(f"{output.name}.skipped.csv"), []
    for path in paths:
        part = Part.load(path)
        rows += list(zip(part.broken, part.reasons, strict=True))
    if not rows:
        listing.unlink(missing_ok=True)
        return
    with listing.open("w", newline="") as file:
        csv.writer(file).writerows([("name", "reason"), *rows])
