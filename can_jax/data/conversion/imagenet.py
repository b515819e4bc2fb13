"""Conversion of ImageNet-1k to indexed TFRecord shards."""

import functools
import json
import os
import shutil
from pathlib import Path

import numpy as np

from can_jax.data.conversion.images import (
    KAGGLE,
    TRAIN_TAR,
    VAL_TAR,
    Image,
    find_train,
    find_val,
)
from can_jax.data.index.build import build_index
from can_jax.data.index.examine import Plan
from can_jax.data.sources.example_table import FOLDER
from can_jax.data.sources.shards import IMAGE_KEY, LABEL_KEY, locate_shards
from can_jax.data.storage.digest import digest_of_bytes, digest_of_columns
from can_jax.data.storage.reading import OpenFiles
from can_jax.data.storage.shard_names import is_shard
from can_jax.utils.errors import UserError
from can_jax.utils.files import check_directory, replace_text, replacing
from can_jax.utils.tensorflow import tensorflow
from can_jax.utils.workers import THIS_PROCESS, Workers

OFFICIAL = {"train": 1_281_167, "val": 50_000}  # the number of images of each split
SHARD_BYTES = 140e6  # the approximate default size of a shard
SPLITS_OF_RECORDS = ("train", "validation", "val", "test")


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
        partial: Whether to accept official tars with more or fewer images than ImageNet-1k, and
            more or fewer validation images than labels in the development kit.
        workers: The processes that write and index the shards; by default only this process. All
            nodes of a cluster must have ``root`` and ``target`` mounted under the same paths.

    Raises:
        UserError: The data is missing, damaged or in an unknown layout; or ``target`` is None,
            ``root``, not writable or too full, or holds shards from another conversion.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; --help describes what FROM must contain")
    if target is not None and target.resolve() == root.resolve():
        raise UserError(f"TO={target} is FROM: give another folder; to index TFRecords, omit TO")
    if any(is_shard(name, "tfrecord") for name in os.listdir(root)):
        if target is not None:
            print(f"{root} contains TFRecords, which are indexed in place: {target} is not used")
        _index_records(str(root), workers)
        return
    if target is not None:
        check_directory(target)
    if (root / KAGGLE).is_dir():
        root = root / KAGGLE
    splits = {"train": find_train(root), "val": find_val(root, partial)}
    if target is None:
        raise UserError("the argument TO is missing: give the folder in which to write the shards")
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
    """Build the index of the given shards in the default index folder of their split."""
    out = Path(root) / FOLDER / split
    build_index(Plan("tfrecord", root, "read"), shards, out, workers, label_names=classes)


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
            other images, another image order, other labels or another number of shards.
    """
    target.mkdir(parents=True, exist_ok=True)
    sizes = [i.length if i.length >= 0 else os.path.getsize(i.path) for i in images]
    count = shards or max(1, round(sum(sizes) / SHARD_BYTES))
    paths = [target / f"{split}-{n:05d}-of-{count:05d}.tfrecord" for n in range(count)]
    todo = [number for number, path in enumerate(paths) if not path.exists()]
    # The order of the images, which determines the shard of each, differs between tars and folders.
    order_digest = digest_of_bytes(os.fsencode("\0".join(image.name for image in images))).hex()
    label_of = {name: i for i, name in enumerate(classes)}
    labels = np.array([label_of[image.class_name] for image in images])
    plan = {
        "images": len(images), "bytes": sum(sizes), "shards": count, "classes": len(classes),
        "order": order_digest,
        # The sizes identify images that have the same name in several classes.
        "labels": digest_of_columns(labels, np.array(sizes)),
    }  # fmt: skip
    note = target / f"{split}.json"
    # The notes of earlier versions lack some keys of the plan.
    if note.exists() and plan | json.loads(note.read_text()) != plan:
        raise UserError(f"{note} is from another conversion; give another folder as TO")
    needed, free = sum(sizes) * len(todo) / count, shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"{target} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed"
        )
    replace_text(note, json.dumps(plan))
    order = np.random.default_rng(0).permutation(len(images))
    parts = [(paths[number], [images[i] for i in order[number::count]]) for number in todo]
    results = workers.results(functools.partial(_write_shard, label_of), parts)
    for done, _ in enumerate(results, count - len(todo) + 1):
        if done % 50 == 0 or done == count:
            print(f"{split}: {done} of {count} shards", flush=True)
    return [path.name for path in paths]


def _write_shard(label_of: dict[str, int], part: tuple[Path, list[Image]]) -> None:
    """Write one shard, a TFRecord file, atomically.

    Args:
        label_of: The label of each class.
        part: The path of the shard, and the images to write to it.
    """
    path, images = part
    tf = tensorflow()
    files = OpenFiles()
    with replacing(path) as unfinished, tf.io.TFRecordWriter(str(unfinished)) as writer:
        for image in images:
            content = files.get(image.path, str).read(image.offset, image.length)
            name, label = os.fsencode(image.name), label_of[image.class_name]
            feature = {
                IMAGE_KEY: tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
                "image/filename": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name])),
                LABEL_KEY: tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString(deterministic=True))
