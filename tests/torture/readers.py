"""The readers of files that may be anybody's, each with a good file to begin from."""

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from can_jax.checkpoint.run_directory import read_config
from can_jax.config.resolve import default_config, resolve, to_json
from can_jax.data.formats.records import masked_crc32c
from can_jax.data.formats.shard_reader import read_tar, read_tfrecord
from can_jax.data.formats.tfds_files import check_features
from can_jax.data.index.examine import why_undecodable
from can_jax.data.sources.arrays import open_arrays
from can_jax.data.sources.example_table import FOLDER, Table
from can_jax.data.sources.folder import open_folder
from can_jax.data.sources.shards import example_parser, open_tfrecord, open_webdataset
from can_jax.data.storage.files import Names
from can_jax.evaluate.reports.comparison import comparison
from can_jax.evaluate.reports.results import read_results
from can_jax.selfcheck.compare import read as read_reference
from can_jax.utils.errors import UserError
from can_jax.weights.read_weights import complete, read_weights
from can_jax.weights.reading import read_arrays
from tests.data.samples import encode, random_image, write_tar, write_tfrecord
from tests.weights.vits import save_raw, vit


class Reader(NamedTuple):
    """A reader.

    Attributes:
        write: Writes a good file, or several, into a folder.
        read: Reads them.
        files: Patterns of those that are changed.
        alone: Whether a changed file is read without the others.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], object]
    files: tuple[str, ...]
    alone: bool = False


def pickled(arrays):
    """The pickle that `torch.save` writes of a dict of float32 arrays."""
    out = b"\x80\x02}q\x00("
    for number, (name, array) in enumerate(arrays.items()):
        text = name.encode()
        out += b"X" + struct.pack("<I", len(text)) + text + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        out += b"X\7\0\0\0storagectorch\nFloatStorage\n"
        out += b"X\2\0\0\0%02dX\3\0\0\0cpuJ" % number
        out += struct.pack("<i", array.size) + b"tQJ\0\0\0\0"
        for numbers in (array.shape, [step // array.itemsize for step in array.strides]):
            out += b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"
        out += b"\x89ccollections\nOrderedDict\n)RtR"
    return out + b"u."


def torch_file(arrays, description=None):
    """A `.pth` of float32 arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickled(arrays) if description is None else description)
        for number, array in enumerate(arrays.values()):
            archive.writestr(f"a/data/{number:02}", array.tobytes())
    return buffer.getvalue()


def _pth(folder):
    (folder / "a.pth").write_bytes(torch_file(vit(width=8, depth=1, patch=2, grid=(2, 2))))


META = {
    "patch_size": 2, "width": 8, "depth": 1, "heads": 2, "decoder_width": 8, "decoder_depth": 1,
    "decoder_heads": 2, "images": 2, "views": 2, "mask_ratio": 0.5, "temperature": 0.1,
    "weights": [0.03, 0.67, 0.3], "sigma_max": 0.05, "sigma_scale": 1.0,
}  # fmt: skip


def _npz(folder):
    images = np.zeros((3, 4, 4, 3), np.uint8)
    np.savez_compressed(folder / "train-0.npz", images=images, labels=np.arange(3))
    np.savez(folder / "reference.npz", meta=np.array(json.dumps(META)), a=np.ones(5))


def _read_npz(folder):
    found = [call(folder) for call in (_reference, _weights, _arrays)]
    for error in found:
        if error:
            raise error


def _one(call):
    def quietly(folder):
        try:
            call(folder)
        except UserError as error:
            return error
        return None

    return quietly


_reference = _one(lambda folder: read_reference(str(folder / "reference.npz")))
_weights = _one(lambda folder: read_arrays(epath.Path(folder / "reference.npz")))
_arrays = _one(lambda folder: open_arrays(str(folder), "train", 3).read(np.arange(1)))


def images():
    """A few encoded images."""
    rng = np.random.default_rng(0)
    return [encode(random_image(rng, 8, 8), kind) for kind in ("png", "jpeg")]


def _tar(folder):
    long = "long/" * 40
    names = [f"{long}0.png", f"{long}0.cls", "1.jpg", "1.cls"]
    contents = [images()[0], b"1", images()[1], b"2"]
    write_tar(folder / "train-0.tar", list(zip(names, contents, strict=True)))


def _read_tar(folder):
    path = folder / "train-0.tar"
    list(read_tar(str(path), set()))
    (folder / "b.tar.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    list(read_tar(str(folder / "b.tar.gz"), set()))
    source = open_webdataset(str(path), "train")
    source.read(np.arange(source.examples))


def _tfrecord(folder):
    write_tfrecord(folder / "train-0.tfrecord", images() * 2, [0, 1, 2, 3])


def _read_tfrecord(folder):
    path, parse = folder / "train-0.tfrecord", example_parser("image/encoded", "image/class/label")
    list(read_tfrecord(str(path), parse, set()))
    (folder / "b.tfrecord.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    list(read_tfrecord(str(folder / "b.tfrecord.gz"), parse, set()))
    source = open_tfrecord(str(path), "train")
    source.read(np.arange(source.examples))


def _index(folder):
    for number, content in enumerate(images()):
        (folder / f"{number}.png").write_bytes(content)
    none = np.zeros(2, np.int64)
    table = Table(
        Names.of(["0.png", "1.png"]), np.arange(2, dtype=np.int32), none, none - 1,
        np.arange(2, dtype=np.int32), ("a", "b"), np.arange(2, dtype=np.uint64),
    )  # fmt: skip
    table.save(folder / FOLDER / "train", {"source": "folder", "sizes": {}, "undecodable": 1})


def _read_index(folder):
    source = open_folder(str(folder), "train")
    source.read(np.arange(source.examples))
    source.describe(0)


def _config(folder):
    config = default_config()
    config.total_steps, config.data.image_size = 10, 224
    config.data.path = "/data"
    (folder / "config.json").write_text(to_json(config))


def _manifest(folder):
    arrays = vit(width=8, depth=1, patch=2, grid=(2, 2))
    save_raw(folder / "model.safetensors", arrays, np.float32, "F32")
    facts = {"width": 8, "depth": 1, "heads": 2, "patch_size": 2, "channels": 3}
    facts |= {"image_size": [4, 4], "mean": [0.5] * 3, "std": [0.5] * 3, "gelu": "exact (erf)"}
    content = {"model": facts, "sha256": {"model.safetensors": "0"}, "step": 3}
    (folder / "manifest.json").write_text(json.dumps(content))


def _results(folder):
    content = {
        "metrics": {"knn/top1": 50.0, "gaussian_noise/1/top1": 3.0}, "examples": {"test": 4},
        "warnings": ["w"], "protocol": {"protocol": "knn", "features": "class"},
        "chosen": {"k": 1}, "checkpoint": {"path": "p", "step": 1, "sha256": "0" * 64},
        "data": {"source": "folder", "path": "p", "name": "", "fingerprints": {"a/test": "0"}},
        "tables": {"Table": [{"row": "a", "value": 1.5}]},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(content))


def _features(folder):
    own = "tensorflow_datasets.core.features."
    inner = {"pythonClassName": f"{own}text_feature.Text", "text": {}}
    whole = {"pythonClassName": f"{own}features_dict.FeaturesDict"}
    content = whole | {"featuresDict": {"features": {"a": inner}}}
    (folder / "x" / "1.0.0").mkdir(parents=True)
    (folder / "x" / "1.0.0" / "features.json").write_text(json.dumps(content))


def _image(folder):
    pixels = random_image(np.random.default_rng(0), 12, 9)
    kinds = ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "ico")
    for kind in kinds:
        (folder / f"a.{kind}").write_bytes(encode(pixels, kind))
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    frames[0].save(folder / "b.gif", save_all=True, append_images=frames[1:], comment=b"text")


def _read_image(folder):
    for path in folder.iterdir():
        why_undecodable(path.read_bytes(), 10_000, whole=True)


def _safetensors(folder):
    save_raw(folder / "a.safetensors", vit(width=8, depth=1), np.float32, "F32")


def fix_record(content):
    """Return TFRecords with the right checksums, as far as their lengths are those of records."""
    out, place = b"", 0
    while place + 16 <= len(content):
        header = content[place : place + 8]
        (length,) = struct.unpack("<Q", header)
        body = content[place + 12 : place + 12 + min(length, len(content))]
        out += header + struct.pack("<I", masked_crc32c(header))
        out += body + struct.pack("<I", masked_crc32c(body))
        place += 16 + min(length, len(content))
    return out


def fix_tar(content):
    """Return a tar with the right checksum in each block that is marked as a header."""
    blocks = [content[i : i + 512] for i in range(0, len(content), 512)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == 512:
            total = sum(block[:148]) + sum(block[156:]) + 8 * 32
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


READERS = {
    "pth": Reader(_pth, lambda folder: read_arrays(epath.Path(folder / "a.pth")), ("a.pth",)),
    "safetensors": Reader(
        _safetensors,
        lambda folder: read_arrays(epath.Path(folder / "a.safetensors")),
        ("*.safetensors",),
    ),
    "npz": Reader(_npz, _read_npz, ("*.npz",)),
    "tar": Reader(_tar, _read_tar, ("*.tar",)),
    "tfrecord": Reader(_tfrecord, _read_tfrecord, ("*.tfrecord",)),
    "index": Reader(_index, _read_index, (f"{FOLDER}/train/*",)),
    "config": Reader(
        _config, lambda folder: resolve(read_config(epath.Path(folder))), ("config.json",)
    ),
    "manifest": Reader(
        _manifest, lambda folder: complete(read_weights(epath.Path(folder))), ("manifest.json",)
    ),
    "results": Reader(
        _results,
        lambda folder: comparison({"a": read_results(epath.Path(folder))}),
        ("results.json",),
    ),
    "features": Reader(
        _features, lambda folder: check_features(str(folder), "x"), ("x/1.0.0/features.json",)
    ),
    "image": Reader(_image, _read_image, ("a.*", "b.*"), alone=True),
}
