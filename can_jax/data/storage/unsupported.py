"""Data formats that are not supported, each with a way to convert it."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence

from absl import logging

from can_jax.data.storage.splits import shown, some

TARS = "write its images to tars, for example with the Python package webdataset"
JPEG = "convert it to JPEG, for example with `magick mogrify -format jpg`"
REMEDIES = {
    ".parquet": ("Parquet", TARS),
    ".arrow": ("Arrow", TARS),
    ".mds": ("MosaicML's MDS", TARS),
    ".mdb": ("LMDB", TARS),
    ".lmdb": ("LMDB", TARS),
    ".h5": ("HDF5", TARS),
    ".hdf5": ("HDF5", TARS),
    ".beton": ("FFCV", TARS),
    ".rec": ("MXNet's RecordIO", TARS),
    ".array_record": ("ArrayRecord", TARS),
    ".zip": ("zip", "unpack it with `unzip`"),
    ".7z": ("7z", "unpack it with `7z x`"),
    ".rar": ("rar", "unpack it with `unrar x`"),
    ".npy": ("npy", "write npz files with the array `images`, and set config.data.source=arrays"),
    ".dcm": ("DICOM", "convert it to 16-bit PNG with `dcmj2pnm`, and set config.data.range"),
    ".nii": ("NIfTI", "convert its slices to 16-bit PNG, and set config.data.range"),
    ".heic": ("HEIC", JPEG),
    ".heif": ("HEIC", JPEG),
    ".jxl": (
        "JPEG XL",
        "convert it to JPEG with `djxl`, which is lossless if it was made from a JPEG",
    ),
    ".svg": ("SVG", JPEG),
    ".mp4": ("video", "extract frames from it with `ffmpeg`"),
}


def remedy(names: Iterable[str]) -> str:
    """Return a phrase that names the most frequent unsupported format among some files and a way to
    convert them. The phrase is "" if no file has an unsupported format."""
    suffixes = (os.path.splitext(name.lower().removesuffix(".gz"))[1] for name in names)
    counts = Counter(suffix for suffix in suffixes if suffix in REMEDIES)
    if not counts:
        return ""
    suffix, count = counts.most_common(1)[0]
    kind, help_ = REMEDIES[suffix]
    return f"{count} files are {kind}, which is not supported: {help_}"


def log_not_images(root: str, others: Sequence[str]) -> None:
    """Log a warning about the files below a folder that are left out because they are not images.
    The warning ends with the advice of `remedy` on unsupported formats."""
    if others:
        advice = remedy(others)
        logging.warning(
            "%s: %d files are not recognized as images, and are left out: %s%s",
            shown(root), len(others), some(others, 3), f"; {advice}" if advice else "",
        )  # fmt: skip
