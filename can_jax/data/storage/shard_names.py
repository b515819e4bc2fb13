"""The names of shards, and warnings about missing shards and about files beside shards."""

import itertools
import os
import re
from collections.abc import Sequence

from absl import logging

from can_jax.data.storage.splits import shown, some
from can_jax.data.storage.unsupported import remedy

COMPRESSED_TAR = re.compile(r"\.(tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4))$")
RECORDS = re.compile(r"tfrec|-\d{5}-of-\d{5}")
SIDECARS = r"idx|index|txt|json|jsonl|csv|tsv|ya?ml|md|log|lock|md5|sha\d+|crc"
# Files beside TFRecords, or numbered like them, that are not TFRecords.
NO_RECORDS = re.compile(
    rf"\.({SIDECARS}|tmp|new|part|incomplete|npz|npy|zip|tar|tgz)$"
    r"|parquet|arrow|array_?record|riegeli|bagz"
)
EXPECTED = re.compile(rf"\.({SIDECARS}|parquet)$")  # metadata that tools write beside shards
NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})")


def is_any_shard(name: str, kind: str) -> bool:
    """Return whether a file name is that of a shard, compressed or not."""
    return is_shard(name, kind) or (kind == "tar" and bool(COMPRESSED_TAR.search(name.lower())))


def is_shard(name: str, kind: str) -> bool:
    """Return whether a file name is that of a TFRecord file or, if ``kind`` is `tar`, of an
    uncompressed tar."""
    name = name.lower()
    if name.startswith("."):
        return False
    if kind == "tar":
        return name.endswith(".tar")
    return bool(RECORDS.search(name)) and not NO_RECORDS.search(name)


def log_missing_shards(shards: Sequence[str]) -> None:
    """Log a warning if a set of shards numbered like `train-00000-of-00004` is incomplete.

    Args:
        shards: The paths of the existing shards. The shard numbers of a set start at 0 or 1.
    """
    sets: dict[tuple[str, str], set[int]] = {}
    for shard in shards:
        if match := NUMBERED.match(shard):
            sets.setdefault((match[1], match[3]), set()).add(int(match[2]))
    lacking = {key: there for key, there in sets.items() if len(there) < int(key[1])}
    missing = (
        f"{prefix}-{number:05d}-of-{total}"
        for (prefix, total), there in lacking.items()
        for number in range(int(int(total) in there), int(total))
        if number not in there
    )
    if first := list(itertools.islice(missing, 3)):
        count = sum(int(total) - len(there) for (_, total), there in lacking.items())
        logging.warning(
            "%d of the %d shards that the file names count are missing, for example %s; add "
            "them, or rename the shards if the data is complete",
            count, sum(int(total) for _, total in sets), some(first),
        )  # fmt: skip


def log_not_shards(folder: str, names: Sequence[str], kind: str) -> None:
    """Log a warning about the files in a local folder that are neither shards nor metadata. The
    warning ends with the advice of `remedy` on unsupported formats.

    Args:
        folder: The path of the folder.
        names: The paths of the files and subfolders in the folder, relative to ``folder``.
        kind: The kind of shard, `tfrecord` or `tar`.
    """
    others = sorted(
        name
        for name in names
        if not name.startswith(".")
        and "." in os.path.basename(name)
        and not is_any_shard(os.path.basename(name), kind)
        and not EXPECTED.search(name.lower())
        and os.path.isfile(os.path.join(folder, name))
    )
    if others:
        advice = remedy(others)
        logging.warning(
            "%s: %d files that are not %s shards by name are left out: %s%s",
            shown(folder), len(others), kind, some(others, 3), f"; {advice}" if advice else "",
        )  # fmt: skip
