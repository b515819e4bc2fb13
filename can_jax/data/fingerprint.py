"""The fingerprint of a data set: by it a run that resumes knows whether the data is the same.

The order of examples is a function of the seed and of how many there are, so that one file more or
less gives each step other images.
"""

import hashlib
import os
from typing import Any

import numpy as np

from can_jax.data.pipeline.streaming_loader import ShardStream
from can_jax.data.sources.base import ArraySource, Source
from can_jax.data.sources.example_table import Table
from can_jax.data.sources.indexed import IndexedSource
from can_jax.data.sources.mixture import MixtureSource
from can_jax.data.storage.files import Names, shard_sizes

BLOCK = 2**24  # bytes that are hashed at once: indexes are larger than memory
# What each entry says where it differs.
WORDS = {
    "names": "other files",
    "sizes": "files of other sizes",
    "places": "examples at other places in the files",
    "labels": "other labels",
    "content": "other content",
    "weights": "other weights of the parts",
}

Fingerprint = dict[str, Any]  # of what JSON can hold


def fingerprint(source: Source | ShardStream) -> Fingerprint:
    """Return the fingerprint of a source, whatever folder it lies in.

    Images in memory are compared by content; files by name and size, and by the places of their
    examples; an index also by the hashes of content that it holds.
    """
    if isinstance(source, MixtureSource):
        parts = [fingerprint(part) for part in source.parts]
        shares = [round(weight / sum(source.weights), 6) for weight in source.weights]
        return {"parts": parts, "weights": shares}
    if isinstance(source, ShardStream):
        return _of_shards(source)
    if isinstance(source, ArraySource):
        content = {"content": _digest(source.images), "labels": _digest(source.labels)}
        return {"examples": source.examples} | content
    assert isinstance(source, IndexedSource), type(source)
    found: Fingerprint = {"examples": source.examples} | _of_table(source.table)
    if source.labels is not None:  # else each record holds its own
        found["labels"] = _digest(source.labels)
    return found


def differences(stored: Fingerprint, current: Fingerprint) -> list[str]:
    """Return a phrase for each entry by which two fingerprints differ.

    An entry that only one of them has, as after an index was built, is not compared.
    """
    if ("parts" in stored) != ("parts" in current):
        return ["a mixture instead of one source" if "parts" in current else "no mixture any more"]
    old, new = stored.get("parts", []), current.get("parts", [])
    if len(old) != len(new):
        return [f"{len(new)} parts instead of {len(old)}"]
    found = [
        f"part {number}: {phrase}"
        for number, parts in enumerate(zip(old, new, strict=True))
        for phrase in differences(*parts)
    ]
    if stored.get("examples") != current.get("examples"):
        found.append(f"{current.get('examples')} examples instead of {stored.get('examples')}")
    common = (key for key in WORDS if key in stored and key in current)
    return found + [WORDS[key] for key in common if stored[key] != current[key]]


def _of_shards(source: ShardStream) -> Fingerprint:
    root = os.path.commonpath([os.path.dirname(path) for path in source.paths])
    names = Names.of([os.path.relpath(path, root) for path in source.paths])
    return {"names": _digest_of_names(names), "sizes": _digest(shard_sizes(source.paths))}


def _of_table(table: Table) -> Fingerprint:
    found = {
        "names": _digest_of_names(table.names),
        "places": _digest(table.file, table.offset, table.length),
    }
    if table.size is not None:
        found["sizes"] = _digest(table.size)
    if table.digest is not None:
        found["content"] = _digest(table.digest)
    return found


def _digest_of_names(names: Names) -> str:
    ends = names.ends
    return _digest(names.text[: int(ends[-1]) if len(ends) else 0], ends)


def _digest(*columns: np.ndarray) -> str:
    """Return the BLAKE2b hash of arrays, the same for all integer types that hold their numbers."""
    digest = hashlib.blake2b(digest_size=8)
    for column in columns:
        digest.update(str(column.shape).encode())
        rows = max(1, BLOCK // max(1, column[:1].nbytes))
        for start in range(0, len(column), rows):
            block = column[start : start + rows]
            narrow = block.dtype in (np.uint8, np.uint64)
            digest.update((block if narrow else block.astype(np.int64)).tobytes())
    return digest.hexdigest()
