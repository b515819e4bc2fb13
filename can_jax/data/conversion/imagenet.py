"""Conversion of ImageNet-1k to indexed TFRecord shards, from official tars or class folders."""

import contextlib
import functools
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from can_jax.data.conversion.devkit import labels_of_devkit
from can_jax.data.formats.label_list import read_label_list
from can_jax.data.formats.tar import Members, open_tar
from can_jax.data.index.build import build_index
from can_jax.data.index.examine import Plan
from can_jax.data.sources.example_table import FOLDER
from can_jax.data.sources.shards import IMAGE_KEY, LABEL_KEY, locate_shards
from can_jax.data.storage.digest import digest_of_bytes
from can_jax.data.storage.files import IMAGE_NAME, find_images
from can_jax.data.storage.find import is_shard
from can_jax.data.storage.reading import OpenFiles
from can_jax.utils.errors import UserError
from can_jax.utils.files import check_directory, replace_text, replacing
from can_jax.utils.tensorflow import tensorflow
from can_jax.utils.workers import THIS_PROCESS, Workers

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")  # the folder of the images in Kaggle's archive
SOLUTION = "LOC_val_solution.csv"  # the labels of Kaggle's validation images
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
OFFICIAL = {"train": 1_281_167, "val": 50_000}  # the number of images of each split
SHARD_BYTES = 140e6  # the approximate default size of a shard
SPLITS_OF_RECORDS = ("train", "validation", "val", "test")


class Image(NamedTuple):
    """The location and class of one image.

    Attributes:
        path: The path of the image file, or of the tar that contains the image.
        offset: The byte offset of the image in the file at ``path``.
        length: The length of the image in bytes; -1 if the whole file is the image.
        name: The file name of the image, without folders.
        class_name: The name of the image's class; "" if it is not known yet.
    """

    path: str
    offset: int
    length: int
    name: str
    class_name: str


def write_imagenet(
    root: Path,
    target: Path | None,
    shards: int | None = None,
    partial: bool = False,
    workers: Workers = THIS_PROCESS,
) -> None:
    """Write indexed TFRecord shards of ImageNet-1k, or of a data set with the same layout.

    If ``root`` contains TFRecords, no shards are written, and the TFRecords are indexed in place.

    Args:
        root: The folder with the official tars, class folders in `train/` and `val/`, the unpacked
            Kaggle archive, or TFRecords.
        target: The folder to which the shards are written. If ``root`` contains TFRecords,
            ``target`` is not used and may be None.
        shards: The number of shards of each split; None for shards of about 140 MB.
        partial: Whether to accept official tars whose number of images differs from that of
            ImageNet-1k.
        workers: The processes that write and index the shards; by default only this process. All
            nodes of a cluster must have ``root`` and ``target`` mounted under the same paths.

    Raises:
        UserError: The data is missing, damaged or in an unknown layout, or ``target`` is None, not
            writable, too full, or has shards from another conversion.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; see --help for its required content")
    if any(is_shard(name, "tfrecord") for name in os.listdir(root)):
        if target is not None:
            print(f"{root} contains TFRecords, which are indexed in place: {target} is not used")
        _index_records(str(root), workers)
        return
    if target is not None:
        check_directory(target)
    if (root / KAGGLE).is_dir():
        root = root / KAGGLE
    splits = {"train": find_train(root), "val": find_val(root)}
    if target is None:
        raise UserError("TO is missing: give the folder in which to write the shards")
    classes = sorted({image.class_name for image in splits["train"]})
    for split, images in splits.items():
        _check_split(root, split, images, set(classes), partial)
    for split, images in splits.items():
        if images:
            written = write_shards(target, split, images, classes, shards, workers)
            _index(str(target), written, split, workers, tuple(classes))


def _check_split(
    root: Path, split: str, images: list[Image], classes: set[str], partial: bool
) -> None:
    """Check the classes and image count of a split, and print the numbers of images and classes.

    Raises:
        UserError: The split has a class that the training split lacks. If ``partial`` is False,
            UserError is also raised for an official tar with more or fewer images than ImageNet-1k.
    """
    names = {image.class_name for image in images}
    if unknown := sorted(names - classes):
        raise UserError(f"the class {unknown[0]} of the split {split} is not in the split train")
    official = OFFICIAL[split]
    note = "as in ImageNet-1k" if len(images) == official else f"where ImageNet-1k has {official}"
    print(f"{split}: {len(images)} images in {len(names)} classes, {note}")
    tar = {"train": TRAIN_TAR, "val": VAL_TAR}[split]
    if images and len(images) != official and (root / tar).exists() and not partial:
        raise UserError(
            f"{root / tar} has {len(images)} images, but ImageNet-1k has {official}: download "
            "the tar again, or accept it with --partial"
        )


def _index_records(root: str, workers: Workers) -> None:
    """Index TFRecords in place, for each split named in their file names.

    Raises:
        UserError: No TFRecord file belongs to any split.
    """
    indexed: list[list[str]] = []
    refused = None
    for split in SPLITS_OF_RECORDS:
        try:
            folder, shards = locate_shards("tfrecord", root, split)
        except UserError as error:
            refused = refused or error
            continue
        if shards not in indexed:  # `val` and `validation` find the same shards
            indexed.append(shards)
            _index(folder, shards, split, workers)
    if not indexed and refused:
        raise refused


def _index(
    root: str, shards: list[str], split: str, workers: Workers, classes: tuple[str, ...] = ()
) -> None:
    """Index shards, and write the index to the default index folder of their split."""
    out = Path(root) / FOLDER / split
    build_index(Plan("tfrecord", root, "read"), shards, out, workers, label_names=classes)


def find_train(root: Path) -> list[Image]:
    """Return the training images, from the official tar of tars if it exists, else from the folder
    `train/`.

    Raises:
        UserError: Images are missing or in no class folder, or a tar is damaged or has a link.
    """
    if (root / TRAIN_TAR).exists():
        return list(_images_of_tars(root / TRAIN_TAR))
    otherwise = (
        f"neither {root / TRAIN_TAR} nor {root / 'train'}/CLASS/… exists; FROM must contain one"
    )
    return list(_images_of_folder(root / "train", otherwise))


def find_val(root: Path) -> list[Image]:
    """Return the validation images; an empty list if there are none, or if the labels of the
    official tar are missing.

    Raises:
        UserError: A file is damaged, the tar contains a link or a sparse file, or the labels do
            not match the images.
    """
    if (root / VAL_TAR).exists():
        if not (root / DEVKIT).exists():
            print(f"no split val: {root / DEVKIT} with the labels of {VAL_TAR} does not exist")
            return []
        images = sorted(_members(root / VAL_TAR), key=lambda member: member.name)
        return _with_devkit_labels(root / DEVKIT, root / VAL_TAR, images)
    loose = sorted(path for path in (root / "val").glob("*") if IMAGE_NAME.search(path.name))
    if not loose:
        return list(_images_of_folder(root / "val", None))
    images = [Image(str(path), 0, -1, path.name, "") for path in loose]
    # In Kaggle's archive, the solution is beside the folder `ILSVRC`, three levels above ``root``.
    folders = (root, *root.resolve().parents[: len(KAGGLE.parts)])
    solutions = (folder / SOLUTION for folder in folders)
    if solution := next((path for path in solutions if path.exists()), None):
        listed = read_label_list(str(solution))
        labels = [listed.get(path.stem, listed.get(path.name, "")) for path in loose]
        if missing := [path.name for path, label in zip(loose, labels, strict=True) if not label]:
            raise UserError(f"{solution} has no label for {missing[0]}")
        return _labeled(images, labels)
    if (root / DEVKIT).exists():
        return _with_devkit_labels(root / DEVKIT, root / "val", images)
    raise UserError(
        f"{loose[0]} is in no class folder: put {SOLUTION} (Kaggle) or {DEVKIT} into {root}, "
        f"or move the images to {root / 'val'}/CLASS/…"
    )


def _with_devkit_labels(devkit: Path, images_path: Path, images: list[Image]) -> list[Image]:
    """Return copies of the images, which must be sorted by name, with class names from the devkit.

    Raises:
        UserError: The development kit is damaged, or the numbers of labels and of images differ.
    """
    labels = labels_of_devkit(devkit)
    if len(labels) != len(images):
        raise UserError(
            f"{images_path} has {len(images)} images, but {devkit.name} has {len(labels)} labels; "
            "check that both downloads are complete"
        )
    return _labeled(images, labels)


def _labeled(images: list[Image], labels: list[str]) -> list[Image]:
    """Return copies of the images with ``labels`` as their class names."""
    return [image._replace(class_name=label) for image, label in zip(images, labels, strict=True)]


def _images_of_folder(folder: Path, otherwise: str | None) -> Iterator[Image]:
    """Yield the images in the class folders of a folder.

    Args:
        folder: The folder that contains one folder per class.
        otherwise: The error message if the folder contains no image; None if that is not an error.

    Raises:
        UserError: An image is in no class folder, or there is no image and ``otherwise`` is given.
    """
    names, _ = find_images(str(folder)) if folder.is_dir() else ([], [])
    if not names and otherwise:
        raise UserError(otherwise)
    for name in names:
        if os.sep not in name:
            raise UserError(f"{folder / name} is in no class folder; move it to {folder}/CLASS/…")
        yield Image(str(folder / name), 0, -1, os.path.basename(name), name.split(os.sep)[0])


def _images_of_tars(path: Path) -> Iterator[Image]:
    """Yield the images of a tar that contains one tar per class, without unpacking the tar."""
    with open(path, "rb") as file:
        for outer in _members(path):
            for image in _members(path, _Slice(file, outer.offset, outer.length)):
                offset = outer.offset + image.offset
                yield image._replace(offset=offset, class_name=outer.name.removesuffix(".tar"))


class _Slice(io.RawIOBase):
    """A read-only file object for a byte range of another file."""

    def __init__(self, file: io.BufferedReader, start: int, length: int):
        self._file, self.start, self._length, self._position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self.start + self._position)
        content = self._file.read(min(len(buffer), max(0, self._length - self._position)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _members(path: Path, part: _Slice | None = None) -> Iterator[Image]:
    """Yield each regular file of a tar, or of a nested tar, as an `Image` without a class.

    Args:
        path: The path of the outer tar.
        part: The nested tar to read; None to read the outer tar.

    Raises:
        UserError: The tar is damaged, or contains a link or a sparse file.
    """
    try:
        with contextlib.ExitStack() as stack:
            file = part or stack.enter_context(open(path, "rb"))
            members = Members(stack.enter_context(open_tar(file, "r:")), _size(file))
            for member in members:
                name = os.path.basename(member.name)
                if member.issparse() or member.islnk() or member.issym():
                    raise UserError(
                        f"{path}: {name} is a link or a sparse file; recreate the tar without it"
                    )
                if member.isreg():
                    yield Image(str(path), member.offset_data, member.size, name, "")
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{path} is not a complete tar: {error}; check that the download is complete"
        ) from error
    if members.problem:
        where = f"{path}, in the inner tar at byte {part.start}," if part else str(path)
        raise UserError(f"{where} {members.problem}; check that the download is complete")


def _size(file: Any) -> int:
    """Return the size of an open file in bytes, and rewind it."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


def write_shards(
    target: Path,
    split: str,
    images: list[Image],
    classes: list[str],
    shards: int | None = None,
    workers: Workers = THIS_PROCESS,
) -> list[str]:
    """Shuffle images with a fixed seed, write them to TFRecord shards, and return the file names of
    the shards.

    Existing shards are not rewritten. A repeated call with equal arguments resumes an interrupted
    conversion.

    Args:
        target: The folder to which the shards are written.
        split: The name of the split, with which the names of the shards begin.
        images: The location and class of each image.
        classes: The class names, in the order of their labels.
        shards: The number of shards; None for shards of about 140 MB.
        workers: The processes that write the shards; by default only this process.

    Raises:
        UserError: The disk has too little free space, or ``target`` has shards from a call with
            other images, another image order or another number of shards.
    """
    target.mkdir(parents=True, exist_ok=True)
    sizes = [i.length if i.length >= 0 else os.path.getsize(i.path) for i in images]
    count = shards or max(1, round(sum(sizes) / SHARD_BYTES))
    paths = [target / f"{split}-{n:05d}-of-{count:05d}.tfrecord" for n in range(count)]
    todo = [number for number, path in enumerate(paths) if not path.exists()]
    # The order of the images, which determines the shard of each, differs between tars and folders.
    order_digest = digest_of_bytes(os.fsencode("\0".join(image.name for image in images))).hex()
    plan = {
        "images": len(images), "bytes": sum(sizes), "shards": count, "classes": len(classes),
        "order": order_digest,
    }  # fmt: skip
    note = target / f"{split}.json"
    if note.exists() and plan | json.loads(note.read_text()) != plan:
        raise UserError(f"{note} does not match the shards to be written; give another TO")
    needed, free = sum(sizes) * len(todo) / count, shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"{target} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed"
        )
    replace_text(note, json.dumps(plan))
    labels = {name: i for i, name in enumerate(classes)}
    order = np.random.default_rng(0).permutation(len(images))
    parts = [(paths[number], [images[i] for i in order[number::count]]) for number in todo]
    results = workers.results(functools.partial(_write_shard, labels), parts)
    for done, _ in enumerate(results, count - len(todo) + 1):
        if done % 50 == 0 or done == count:
            print(f"{split}: {done} of {count} shards", flush=True)
    return [path.name for path in paths]


def _write_shard(labels: dict[str, int], part: tuple[Path, list[Image]]) -> None:
    """Write one shard, a TFRecord file, atomically.

    Args:
        labels: The label of each class.
        part: The path of the shard, and the images to write to it.
    """
    path, images = part
    tf = tensorflow()
    files = OpenFiles()
    with replacing(path) as unfinished, tf.io.TFRecordWriter(str(unfinished)) as writer:
        for image in images:
            content = files.get(image.path, str).read(image.offset, image.length)
            name, label = os.fsencode(image.name), labels[image.class_name]
            feature = {
                IMAGE_KEY: tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
                "image/filename": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name])),
                LABEL_KEY: tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString(deterministic=True))
