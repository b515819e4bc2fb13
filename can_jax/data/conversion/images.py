"""The images of ImageNet-1k in the official tars, in class folders or in Kaggle's archive."""

import contextlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from can_jax.data.conversion.devkit import labels_of_devkit
from can_jax.data.formats.label_list import read_label_list
from can_jax.data.formats.tar import Members, open_tar
from can_jax.data.storage.files import find_images
from can_jax.data.storage.unsupported import log_not_images
from can_jax.utils.errors import UserError

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")  # the folder of the images in Kaggle's archive
SOLUTION = "LOC_val_solution.csv"  # the labels of Kaggle's validation images
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
NUMBER = re.compile(r"(\d+)\.\w+$")  # that of a validation image, in its name


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


def find_train(root: Path) -> list[Image]:
    """Return the training images, from the official tar of tars if it exists, else from the folder
    `train/`.

    Raises:
        UserError: Images are missing or in no class folder, or a tar is damaged or has a link.
    """
    if (root / TRAIN_TAR).exists():
        return list(_images_of_tars(root / TRAIN_TAR))
    names = _names_of_images(root / "train")
    if not names:
        raise UserError(
            f"neither {root / TRAIN_TAR} nor {root / 'train'}/CLASS/… exists; FROM must contain one"
        )
    return _in_class_folders(root / "train", names)


def find_val(root: Path, partial: bool = False) -> list[Image]:
    """Return the validation images; an empty list if there are none, or if the labels of the
    official tar are missing.

    Args:
        root: The folder with the official tar, or with the folder `val/`.
        partial: Whether to accept fewer or more images than the development kit has labels. Each
            image is then labeled by the number at the end of its name.

    Raises:
        UserError: A file is damaged, the tar contains a link or a sparse file, only some images are
            in class folders, or the labels do not match the images.
    """
    if (root / VAL_TAR).exists():
        if not (root / DEVKIT).exists():
            print(f"no split val: {root / DEVKIT} with the labels of {VAL_TAR} does not exist")
            return []
        images = sorted(_members(root / VAL_TAR), key=lambda member: member.name)
        return _with_devkit_labels(root / DEVKIT, root / VAL_TAR, images, partial)
    folder = root / "val"
    names = _names_of_images(folder)
    loose = [name for name in names if os.sep not in name]
    if not loose or len(loose) < len(names):
        return _in_class_folders(folder, names)
    images = [Image(str(folder / name), 0, -1, name, "") for name in loose]
    # In Kaggle's archive, the solution is beside the folder `ILSVRC`, three levels above ``root``.
    folders = (root, *root.resolve().parents[: len(KAGGLE.parts)])
    solutions = (folder / SOLUTION for folder in folders)
    if solution := next((path for path in solutions if path.exists()), None):
        listed = read_label_list(str(solution))
        labels = [listed.get(os.path.splitext(name)[0], listed.get(name, "")) for name in loose]
        if missing := [name for name, label in zip(loose, labels, strict=True) if not label]:
            raise UserError(f"{solution} has no label for {missing[0]}")
        return _labeled(images, labels)
    if (root / DEVKIT).exists():
        return _with_devkit_labels(root / DEVKIT, folder, images, partial)
    raise UserError(
        f"{folder / loose[0]} is in no class folder: put a file with the labels, {SOLUTION} "
        f"(Kaggle) or {DEVKIT}, into {root}, or move the images to {folder}/CLASS/…"
    )


def _with_devkit_labels(
    devkit: Path, images_path: Path, images: list[Image], partial: bool
) -> list[Image]:
    """Return copies of the images, with class names from the development kit.

    If the numbers in the names are those of the labels, they decide; `2.JPEG` can be sorted after
    `10.JPEG`. Otherwise the labels are in the order of the names.

    Args:
        devkit: The path of the development kit.
        images_path: The path of the tar or folder that contains the images.
        images: The images, sorted by name.
        partial: Whether the numbers of images and of labels may differ; see `find_val`.

    Raises:
        UserError: The development kit is damaged; or the numbers of labels and images differ, and
            ``partial`` is False or an image name ends in no label number.
    """
    labels = labels_of_devkit(devkit)
    matches = [NUMBER.search(image.name) for image in images]
    numbers = [int(match[1]) if match else 0 for match in matches]
    if sorted(numbers) == list(range(1, len(labels) + 1)):
        return _labeled(images, [labels[number - 1] for number in numbers])
    if len(labels) == len(images):
        return _labeled(images, labels)
    if not partial:
        raise UserError(
            f"{images_path} has {len(images)} images, but {devkit.name} has {len(labels)} labels; "
            "check that both downloads are complete, or accept the images with --partial"
        )
    for image, number in zip(images, numbers, strict=True):
        if not 1 <= number <= len(labels):
            raise UserError(
                f"{images_path}: the name of {image.name} must end in a number from 1 to "
                f"{len(labels)}, the position of its label in {devkit.name}; remove or rename it"
            )
    return _labeled(images, [labels[number - 1] for number in numbers])


def _labeled(images: list[Image], labels: list[str]) -> list[Image]:
    """Return copies of the images with ``labels`` as their class names."""
    return [image._replace(class_name=label) for image, label in zip(images, labels, strict=True)]


def _names_of_images(folder: Path) -> list[str]:
    """Return the sorted paths of the images below a folder, relative to the folder; an empty list
    if the folder does not exist. A warning names the files that are not images."""
    names, others = find_images(str(folder)) if folder.is_dir() else ([], [])
    log_not_images(str(folder), others)
    return names


def _in_class_folders(folder: Path, names: list[str]) -> list[Image]:
    """Return the images at the given paths, which must be inside class folders of ``folder``.

    Raises:
        UserError: An image is in no class folder.
    """
    if loose := next((name for name in names if os.sep not in name), None):
        inner = next((name for name in names if os.sep in name), None)
        but = f", but {folder / inner} is in one" if inner else ""
        raise UserError(
            f"{folder / loose} is in no class folder{but}; move {loose} to {folder}/CLASS/…"
        )
    return [
        Image(str(folder / name), 0, -1, os.path.basename(name), name.split(os.sep)[0])
        for name in names
    ]


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
            f"{path} cannot be read as a tar: {error}; check that the download is complete"
        ) from error
    if members.problem:
        where = f"{path}, in the inner tar at byte {part.start}," if part else str(path)
        raise UserError(f"{where} {members.problem}; check that the download is complete")


def _size(file: Any) -> int:
    """Return the size of an open file in bytes, and rewind it."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size
