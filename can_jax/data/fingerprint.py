"""The fingerprint of a data set, by which a resumed run detects that the data has changed.

The order of examples is a function of the seed and the number of examples. Adding or removing one
file therefore changes the images of every step.
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

BLOCK = 2**24  # bytes hashed at once, because an index can be larger than memory
# The phrase that describes a difference in each entry.
WORDS = {
    "names": "other files",
    "sizes": "files of other sizes",
    "places": "examples at other places in the files",
    "labels": "other labels",
    "content": "other content",
    "weights": "other weights of the parts",
}

Fingerprint = dict[str, Any]  # JSON-serializable


def fingerprint(source: Source | ShardStream) -> Fingerprint:
    """Return the fingerprint of a source, independent of the folder that contains it.

    Images in memory are compared by content. Files are compared by name, size and the offsets of
    their examples. An index also contributes its content hashes.
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
    result: Fingerprint = {"examples": source.examples} | _of_table(source.table)
    if source.labels is not None:  # otherwise each record holds its label
        result["labels"] = _digest(source.labels)
    return result


def differences(stored: Fingerprint, current: Fingerprint) -> list[str]:
    """Return a phrase for each entry in which two fingerprints differ.

    Entries present in only one of them are not compared, such as digests after an index was built.
    """
    if ("parts" in stored) != ("parts" in current):
        return ["a mixture instead of one source" if "parts" in current else "no mixture any more"]
    old, new = stored.get("parts", []), current.get("parts", [])
    if len(old) != len(new):
        return [f"{len(new)} parts instead of {len(old)}"]
    result = [
        f"part {index}: {phrase}"
        for index, parts in enumerate(zip(old, new, strict=True))
        for phrase in differences(*parts)
    ]
    if stored.get("examples") != current.get("examples"):
        result.append(f"{current.get('examples')} examples instead of {stored.get('examples')}")
    common = (key for key in WORDS if key in stored and key in current)
    return result + [WORDS[key] for key in common if stored[key] != current[key]]


def _of_shards(source: ShardStream) -> Fingerprint:
    """Return the fingerprint of streamed shards: their names and sizes."""
    root = os.path.commonpath([os.path.dirname(path) for path in source.paths])
    names = Names.of([os.path.relpath(path, root) for path in source.paths])
    return {"names": _digest_of_names(names), "sizes": _digest(shard_sizes(source.paths))}


def _of_table(table: Table) -> Fingerprint:
    """Return the part of a fingerprint that an example table determines."""
    result = {
        "names": _digest_of_names(table.names),
        "places": _digest(table.file, table.offset, table.length),
    }
    if table.size is not None:
        result["sizes"] = _digest(table.size)
    if table.digest is not None:
        result["content"] = _digest(table.digest)
    return result


def _digest_of_names(names: Names) -> str:
    ends = names.ends
    return _digest(names.text[: int(ends[-1]) if len(ends) else 0], ends)


def _digest(*columns: np.ndarray) -> str:
    """Return the BLAKE2b hash of arrays; equal integers of types wider than a byte hash alike."""
    digest = hashlib.blake2b(digest_size=8)
    for column in columns:
        digest.update(str(column.shape).encode())
        rows = max(1, BLOCK // max(1, column[:1].nbytes))
        for start in range(0, len(column), rows):
            block = column[start : start + rows]
            # Bytes are not widened to eight times their size, and uint64 is not copied.
            narrow = block.dtype in (np.uint8, np.uint64)
            digest.update((block if narrow else block.astype(np.int64)).tobytes())
    return digest.hexdigest()
