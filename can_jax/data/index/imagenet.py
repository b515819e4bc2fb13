"""Indexed shards of ImageNet-1k, from the official tars or from folders."""

import contextlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from can_jax.data.formats.tar import Members, open_tar
from can_jax.data.index.build import build_index
from can_jax.data.index.examine import Plan
from can_jax.data.sources.example_table import FOLDER
from can_jax.data.sources.shards import locate_shards
from can_jax.data.storage.files import find_images
from can_jax.data.storage.find import is_shard
from can_jax.data.storage.reading import OpenFiles
from can_jax.utils.cpu import usable_cores
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.tensorflow import tensorflow

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
OFFICIAL = {"train": 1_281_167, "val": 50_000}  # images
SHARD_BYTES = 140e6
WRITERS = 8
SPLITS_OF_RECORDS = ("train", "validation", "val", "test")


class Image(NamedTuple):
    """Where an image lies: ``length`` -1 is a whole file."""

    path: str
    offset: int
    length: int
    name: str
    class_name: str


def write_imagenet(
    root: Path, target: Path | None, shards: int | None = None, partial: bool = False
) -> None:
    """Write indexed shards of ImageNet-1k, or of a data set that is laid out like it.

    Of TFRecords only an index is written, where they are.

    Args:
        root: The folder with the official tars, or with `train/` and `val/`.
        target: The folder of the shards.
        shards: Their number for each split; by default one for 140 MB.
        partial: Accept official tars with other numbers of images than ImageNet-1k has.

    Raises:
        UserError: The data is not there, damaged, or not as it should be.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; see --help for what it is to hold")
    if any(is_shard(name, "tfrecord") for name in os.listdir(root)):
        _index_records(str(root))
        return
    splits = {"train": find_train(root), "val": find_val(root)}
    if target is None:
        raise UserError("TO is missing: the folder in which to write the shards")
    classes = sorted({image.class_name for image in splits["train"]})
    for split, images in splits.items():
        _compare_with_official(root, split, images, set(classes), partial)
    for split, images in splits.items():
        if images:
            written = write_shards(target, split, images, classes, shards)
            _index(str(target), written, split, tuple(classes))


def _compare_with_official(
    root: Path, split: str, images: list["Image"], classes: set[str], partial: bool
) -> None:
    """Print how many images a split has, and refuse an official tar with another number."""
    known = OFFICIAL[split]
    same = "as in ImageNet-1k" if len(images) == known else f"where ImageNet-1k has {known}"
    names = {image.class_name for image in images}
    for name in sorted(names - classes):
        raise UserError(f"the class {name} of the split {split} is not in the split train")
    print(f"{split}: {len(images)} images in {len(names)} classes, {same}")
    tar = {"train": TRAIN_TAR, "val": VAL_TAR}[split]
    if images and len(images) != known and (root / tar).exists() and not partial:
        raise UserError(
            f"{root / tar} has {len(images)} images, ImageNet-1k has {known}: download it "
            "again, or take it as it is with --partial"
        )


def _index_records(root: str) -> None:
    """Index TFRecords where they are, each split that their names state.

    Raises:
        UserError: There is none.
    """
    indexed: list[list[str]] = []
    refused = None
    for split in SPLITS_OF_RECORDS:
        try:
            folder, shards = locate_shards("tfrecord", root, split)
        except UserError as error:
            refused = refused or error
            continue
        if shards not in indexed:  # `val` is `validation` by another name
            indexed.append(shards)
            _index(folder, shards, split)
    if not indexed and refused:
        raise refused


def _index(root: str, shards: list[str], split: str, classes: tuple[str, ...] = ()) -> None:
    """Index shards in their usual place."""
    out = Path(root) / FOLDER / split
    build_index(Plan("tfrecord", root, "read"), shards, out, usable_cores(), label_names=classes)


def find_train(root: Path) -> list[Image]:
    """The training images of the official tar, a tar of tars, or of the folder."""
    if (root / TRAIN_TAR).exists():
        return list(_images_of_tars(root / TRAIN_TAR))
    otherwise = f"there is neither {root / TRAIN_TAR} nor {root / 'train'}/CLASS/…"
    return list(_images_of_folder(root / "train", otherwise))


def find_val(root: Path) -> list[Image]:
    """The validation images; none if there are none, or no labels for them."""
    if (root / VAL_TAR).exists():
        if not (root / DEVKIT).exists():
            print(f"no split val: {root / DEVKIT}, with the labels of {VAL_TAR}, is not there")
            return []
        labels = labels_of_devkit(root / DEVKIT)
        images = sorted(_members(root / VAL_TAR), key=lambda member: member.name)
        if len(images) != len(labels):
            counts = f"has {len(images)} images, {DEVKIT} {len(labels)} labels"
            raise UserError(f"{root / VAL_TAR} {counts}")
        return [
            image._replace(class_name=label) for image, label in zip(images, labels, strict=True)
        ]
    return list(_images_of_folder(root / "val", None))


def _images_of_folder(folder: Path, otherwise: str | None) -> Iterator[Image]:
    """The images of a folder of class folders; if there are none the message is raised."""
    names, _ = find_images(str(folder)) if folder.is_dir() else ([], [])
    if not names and otherwise:
        raise UserError(otherwise)
    for name in names:
        if os.sep not in name:
            raise UserError(f"{folder / name} lies in no class folder; wanted is {folder}/CLASS/…")
        yield Image(str(folder / name), 0, -1, os.path.basename(name), name.split(os.sep)[0])


def _images_of_tars(path: Path) -> Iterator[Image]:
    """The images of a tar of tars, each of them named by its class; nothing is unpacked."""
    with open(path, "rb") as file:
        for outer in _members(path):
            for image in _members(path, _Slice(file, outer.offset, outer.length)):
                place = outer.offset + image.offset
                yield image._replace(offset=place, class_name=outer.name.removesuffix(".tar"))


class _Slice(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: io.BufferedReader, start: int, length: int):
        self._file, self.start, self._length, self._place = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self.start + self._place)
        content = self._file.read(min(len(buffer), max(0, self._length - self._place)))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def _members(path: Path, part: _Slice | None = None) -> Iterator[Image]:
    """The files in a tar, or in a tar within it.

    Raises:
        UserError: the tar is not whole.
    """
    try:
        with contextlib.ExitStack() as stack:
            file = part or stack.enter_context(open(path, "rb"))
            members = Members(stack.enter_context(open_tar(file, "r:")), _size(file))
            for member in members:
                name = os.path.basename(member.name)
                if member.issparse() or member.islnk() or member.issym():
                    raise UserError(f"{path}: {name} is a link or sparse; make the tar again")
                if member.isreg():
                    yield Image(str(path), member.offset_data, member.size, name, "")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} is no whole tar: {error}; is the download complete?") from error
    if members.problem:
        where = f"{path}, in the tar at byte {part.start} of it," if part else str(path)
        raise UserError(f"{where} {members.problem}; is the download complete?")


def _size(file: Any) -> int:
    """Return the bytes of an open file."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


# What is read of the development kit, and bytes that each may have: several times those it has.
# The numbers of meta.mat are compressed, up to a thousand times.
DEVKIT_FILES = {"meta.mat": 2**17, "ILSVRC2012_validation_ground_truth.txt": 2**20}


def labels_of_devkit(path: Path) -> list[str]:
    """The class of each validation image, in the order of their names."""
    from scipy.io import loadmat

    try:
        with tarfile.open(path) as tar:
            contents = {}
            for member in tar:
                name = os.path.basename(member.name)
                if name in DEVKIT_FILES:
                    if member.size > DEVKIT_FILES[name]:
                        raise ValueError(f"{name} has {member.size} bytes")
                    file = tar.extractfile(member)
                    contents[name] = file.read() if file else b""
        synsets = loadmat(io.BytesIO(contents["meta.mat"]), squeeze_me=True)["synsets"]
        numbers = map(int, contents["ILSVRC2012_validation_ground_truth.txt"].split())
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        return [names[number] for number in numbers]
    except Exception as error:  # SciPy raises every kind
        reason = one_line(error)
        raise UserError(f"{path} is not the development kit of ImageNet-1k: {reason}") from error


def write_shards(
    target: Path, split: str, images: list[Image], classes: list[str], shards: int | None = None
) -> list[str]:
    """Write the images to shards, in an order that is shuffled once; returns the shards' names.

    Shards that are there are kept.

    Raises:
        UserError: no room, or shards of something else in the folder.
    """
    target.mkdir(parents=True, exist_ok=True)
    sizes = [i.length if i.length >= 0 else os.path.getsize(i.path) for i in images]
    count = shards or max(1, round(sum(sizes) / SHARD_BYTES))
    paths = [target / f"{split}-{n:05d}-of-{count:05d}.tfrecord" for n in range(count)]
    todo = [path for path in paths if not path.exists()]
    plan = {"images": len(images), "bytes": sum(sizes), "shards": count, "classes": len(classes)}
    note = target / f"{split}.json"
    if note.exists() and json.loads(note.read_text()) != plan:
        raise UserError(f"{note} is of other images or shards than these; give another folder")
    needed, free = sum(sizes) * len(todo) / count, shutil.disk_usage(target).free
    if needed > free:
        raise UserError(f"{target} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed")
    note.write_text(json.dumps(plan))
    number = {name: i for i, name in enumerate(classes)}
    order = np.random.default_rng(0).permutation(len(images))

    def write(path: Path) -> None:
        mine = order[paths.index(path) :: count]
        _write_shard(path, [images[i] for i in mine], number)

    tensorflow()
    with ThreadPoolExecutor(WRITERS) as writers:
        for done, _ in enumerate(writers.map(write, todo), count - len(todo) + 1):
            if done % 50 == 0 or done == count:
                print(f"{split}: {done} of {count} shards", flush=True)
    return [path.name for path in paths]


def _write_shard(path: Path, images: list[Image], number: dict[str, int]) -> None:
    """A shard, whole or not at all."""
    tf = tensorflow()
    files = OpenFiles()
    unfinished = path.with_suffix(".new")
    with tf.io.TFRecordWriter(str(unfinished)) as writer:
        for image in images:
            content = files[image.path].read(image.offset, image.length)
            feature = {
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
                "image/filename": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[os.fsencode(image.name)])
                ),
                "image/class/label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[number[image.class_name]])
                ),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString(deterministic=True))
    os.replace(unfinished, path)
