"""Hashes of arrays, file names and bytes, of which the fingerprint of a source consists."""

import hashlib

import numpy as np

from can_jax.data.storage.files import Names

BLOCK = 2**24  # bytes hashed at once, because an index can be larger than memory


def digest_of_columns(*columns: np.ndarray) -> str:
    """Return the 8-byte BLAKE2b hash of integer arrays, in hexadecimal.

    Arrays of equal integers have the same hash whatever their integer type, except that uint8
    arrays hash differently.
    """
    digest = hashlib.blake2b(digest_size=8)
    for column in columns:
        digest.update(str(column.shape).encode())
        rows = max(1, BLOCK // max(1, column[:1].nbytes))
        for start in range(0, len(column), rows):
            block = column[start : start + rows]
            # Bytes are not widened to eight times their size, and uint64 needs no conversion.
            narrow = block.dtype in (np.uint8, np.uint64)
            digest.update((block if narrow else block.astype(np.int64)).tobytes())
    return digest.hexdigest()


def digest_of_names(names: Names) -> str:
    """Return the 8-byte BLAKE2b hash of a list of file names, in hexadecimal."""
    ends = names.ends
    return digest_of_columns(names.text[: int(ends[-1]) if len(ends) else 0], ends)


def digest_of_bytes(content: bytes) -> bytes:
    """Return the 8-byte BLAKE2b hash of some bytes."""
    return hashlib.blake2b(content, digest_size=8).digest()
