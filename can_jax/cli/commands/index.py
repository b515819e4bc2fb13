"""`python -m can_jax.data.index PATH [--split=train] [--source=…] [--verify=decode|read|none]`

Writes an index, which holds the location of each example of a data set for random access. By
default, the command decodes every image, leaves undecodable images out of the index, and lists
images with identical content. PATH has the same form as `config.data.path` in a recipe. The index
is written to a subfolder of the data, where training finds it, or to the folder of `--out`.
Re-running an interrupted command resumes it.
"""

import os
import shutil
from pathlib import Path

import numpy as np

from can_jax.cli.command import Command
from can_jax.cli.workers import WorkerFlags
from can_jax.config.image_settings import check_range
from can_jax.data.decoding.depth import Range
from can_jax.data.index.build import build_index
from can_jax.data.index.examine import VERIFY, Plan
from can_jax.data.sources.detect import kind_of
from can_jax.data.sources.example_table import FACTS, FOLDER
from can_jax.data.sources.folder import classes_of, images_of_split
from can_jax.data.sources.shards import locate_shards
from can_jax.data.sources.tfds import locate_tfds
from can_jax.data.storage.mirror import upload, work_folder
from can_jax.data.storage.remote import can_write, is_remote
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError
from can_jax.utils.files import check_directory
from can_jax.utils.progress import phase

SOURCES = ("folder", "tfrecord", "webdataset", "tfds")

COMMAND = Command(__doc__, "PATH", web=True)
FLAGS = COMMAND.flags
_SOURCE = FLAGS.choice(
    "source", None, SOURCES, "The kind of source; by default inferred from PATH."
)
_SPLIT = FLAGS.text("split", "train", "The split, as in `config.data.split`.")
_NAME = FLAGS.text("name", None, "The name of a TFDS data set; PATH is then its data_dir.")
_OUT = FLAGS.path("out", f"The folder of the index; by default PATH/{FOLDER}/SPLIT.")
_VERIFY = FLAGS.choice(
    "verify",
    "decode",
    VERIFY,
    "How to verify the images. decode: decode each image. read: read and hash each file or record, "
    "but decode only the header of its image, which misses truncated images. none: do not read the "
    "images, and trust the headers of shards.",
)
_WORKERS = WorkerFlags(FLAGS)
_DROP = FLAGS.switch(
    "drop_duplicates", False, "Leave duplicates out of the index; by default they are only listed."
)
_IMAGE_KEY = FLAGS.text(
    "image_key", "image/encoded", "The TFRecord feature with the encoded image."
)
_LABEL_KEY = FLAGS.text("label_key", "image/class/label", "The TFRecord feature with the label.")
_MAX_PIXELS = FLAGS.integer(
    "max_pixels",
    50_000_000,
    "The maximum area of an image in pixels; larger images are left out.",
    1,
)
_RANGE = FLAGS.items(
    "range",
    None,
    "LOW,HIGH: the values that become black and white in images of more than 8 bits, as in "
    "`config.data.range`.",
)


@COMMAND.runs
def main(path: str) -> None:
    """Locate the files of a data set, and build their index."""
    value_range, workers = _value_range(_RANGE.value), _WORKERS.read()
    if _OUT.value is not None:
        check_directory(_OUT.value, "--out=")
    source, split = _SOURCE.value or guess_source(path), _SPLIT.value
    if source != "tfds":
        FLAGS.refuse(["name"], f"on the source {source}, only on tfds")
    if source != "tfrecord":
        FLAGS.refuse(["image_key", "label_key"], f"on the source {source}, only on tfrecord")
    if _VERIFY.value == "none":
        unread = ["drop_duplicates", "max_pixels", "range"]
        FLAGS.refuse(unread, "with --verify=none, which reads no image")
    image_key: str = _IMAGE_KEY.value
    label_key: str | None = _LABEL_KEY.value
    file_labels: np.ndarray | None = None
    label_names: tuple[str, ...] = ()
    if source == "folder":
        root, names, others = images_of_split(path, split)
        if others:
            first = shown(others[0])
            print(f"{len(others)} files that are not images are left out, such as {first}")
        labels, label_names = classes_of(names)
        if label_names and -1 in labels:
            print(f"{labels.count(-1)} images are in no class folder and have no label")
        file_labels = np.array(labels, np.int32)
    elif source == "tfds":
        if not _NAME.value:
            raise UserError("--name is missing: give the name of the TFDS data set")
        located = locate_tfds(_NAME.value, path, split)
        root, names, image_key, label_key, label_names, ranges = located
        if ranges:
            raise UserError(f"--split={split}: give the name of a split, not an expression")
    else:
        root, names = locate_shards(source, path, split)
    kind = "tfrecord" if source == "tfds" else source
    out = _OUT.value or os.path.join(root, FOLDER, split)
    if is_remote(out) and not can_write(out):
        raise UserError(f"{shown(out)} cannot be written: give a local folder with --out")
    folder = work_folder(out, "indexing") if is_remote(out) else Path(out)
    with phase("building the index"):
        build_index(
            Plan(kind, root, _VERIFY.value, image_key, label_key, _MAX_PIXELS.value, value_range),
            names,
            folder,
            workers,
            file_labels=file_labels,
            label_names=label_names,
            drop_duplicates=_DROP.value,
        )
    if is_remote(out):
        upload(folder, out, FACTS)
        shutil.rmtree(folder)
        print(f"the index was copied to {shown(out)}")


def _value_range(values: list[str] | None) -> Range:
    """Return the value of `--range` as (low, high), or None if the flag is not set."""
    try:
        return check_range(None if values is None else tuple(map(float, values)))
    except ValueError as error:
        given = ",".join(values or ())
        raise UserError(f"--range={given}: give LOW,HIGH, two numbers, LOW below HIGH") from error


def guess_source(path: str) -> str:
    """Infer the kind of data at a path, one of `SOURCES`.

    Raises:
        UserError: The path holds no data, or no index can be built for this kind of data.
    """
    kind = kind_of(path)
    if kind.source not in SOURCES:
        raise UserError(f"{shown(path)} holds {kind.source}, for which no index can be built")
    return kind.source
