"""Streams of compressed files."""

import gzip
import io
import zlib

import numpy as np
import pytest

from can_jax.data.formats.compressed import BLOCK, expanded

CONTENT = np.random.default_rng(0).integers(0, 64, 3 * BLOCK + 5, dtype=np.uint8).tobytes()


def stream(content):
    return expanded(io.BufferedReader(io.BytesIO(content)))


def test_members_of_a_gzip_file_follow_one_another():
    half = len(CONTENT) // 2
    members = gzip.compress(CONTENT[:half]) + gzip.compress(b"") + gzip.compress(CONTENT[half:])
    assert stream(members).read() == CONTENT
    assert stream(members + b"\0" * (BLOCK + 3)).read() == CONTENT  # padding, as on tapes
    assert stream(zlib.compress(CONTENT) + b"more").read() == CONTENT


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_cut_off_and_damaged_files_raise(compress):
    whole = compress(CONTENT)
    for end in (20, len(whole) // 2, len(whole) - 1):
        with pytest.raises(EOFError):
            stream(whole[:end]).read()
    damaged = bytearray(whole)
    damaged[-2] ^= 1  # of the length at the end of a gzip file, or of a zlib file's checksum
    with pytest.raises(zlib.error, match="incorrect"):
        stream(bytes(damaged)).read()


def test_what_follows_a_gzip_member_is_no_member():
    with pytest.raises(zlib.error, match="incorrect header"):
        stream(gzip.compress(b"a") + b"garbage").read()
