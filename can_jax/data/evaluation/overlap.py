"""Duplicate examples shared by two splits, and a random held-out part of one split."""

import hashlib
import os

import numpy as np

from can_jax.data.decoding.decode import FILE_CHANNELS, pillow_pixels
from can_jax.data.decoding.open_image import open_image
from can_jax.data.evaluation.examples import spread
from can_jax.data.sources.base import ArraySource, Source
from can_jax.data.sources.indexed import IndexedSource
from can_jax.data.sources.labels import Labels, Numbers
from can_jax.data.sources.mixture import MixtureSource
from can_jax.data.storage.reading import is_remote
from can_jax.utils.errors import UserError

SAMPLE = 256  # test examples whose content is compared
CANDIDATES = 2048  # training examples read for that comparison, at most
HASHED_BYTES = 10**9  # bytes of an in-memory array that are hashed, at most
STATED = 200_000  # files whose sizes are looked up, at most


def same_examples(one: Source, other: Source) -> bool:
    """Return whether two sources read the same files."""
    if one is other:
        return True
    if isinstance(one, ArraySource) and isinstance(other, ArraySource):
        return bool(one.files) and one.files == other.files
    if isinstance(one, MixtureSource) and isinstance(other, MixtureSource):
        parts = zip(one.parts, other.parts, strict=False)
        same = len(one.parts) == len(other.parts)
        return same and all(same_examples(a, b) for a, b in parts)
    if not (isinstance(one, IndexedSource) and isinstance(other, IndexedSource)):
        return False
    return (
        _place(one) == _place(other)
        and len(one.table) == len(other.table)
        and np.array_equal(one.table.names.text, other.table.names.text)
        and np.array_equal(one.table.file, other.table.file)
        and np.array_equal(one.table.offset, other.table.offset)
    )


def _place(source: IndexedSource) -> str:
    """Return the canonical root of a source; a local root is resolved through links."""
    return source.root if is_remote(source.root) else os.path.realpath(source.root)


def copies(
    train: Source, train_examples: Numbers, test: Source, test_examples: Numbers
) -> tuple[int, int]:
    """Count the test examples that duplicate a training example.

    If both indexes hold digests, all examples are compared. Otherwise a sample of the test files is
    compared with training files of the same size.

    Of arrays, as many images as fit into `HASHED_BYTES` are compared by their pixels. Mixtures are
    compared part by part.

    Returns:
        The number of duplicates, and the number of test examples compared.
    """
    duplicates = compared = 0
    for part, chosen in _parts(test, test_examples):
        compared_rows, copied_rows = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for other, learned in _parts(train, train_examples):
            copied, examined = _copied(other, learned, part, chosen)
            if same_examples(other, part):
                copied = np.union1d(copied, np.intersect1d(chosen, learned))
                examined = chosen
            copied_rows, compared_rows = (
                np.union1d(copied_rows, copied),
                np.union1d(compared_rows, examined),
            )
        duplicates, compared = duplicates + len(copied_rows), compared + len(compared_rows)
    return duplicates, compared


def _parts(source: Source, examples: Numbers) -> list[tuple[Source, Numbers]]:
    """Return the parts of a mixture, or the source itself, with the selected indices of each."""
    if not isinstance(source, MixtureSource):
        return [(source, examples)]
    parts, start = [], 0
    for part in source.parts:
        inside = examples[(examples >= start) & (examples < start + part.examples)] - start
        parts += _parts(part, inside)
        start += part.examples
    return parts


def _copied(
    train: Source, train_examples: Numbers, test: Source, test_examples: Numbers
) -> tuple[Numbers, Numbers]:
    """Return the indices of the test examples that are duplicates, and of those compared."""
    if isinstance(train, IndexedSource) and isinstance(test, IndexedSource):
        return _copied_files(train, train_examples, test, test_examples)
    arrays = train if isinstance(train, ArraySource) else test
    kinds = ArraySource | IndexedSource
    if not (
        isinstance(arrays, ArraySource) and isinstance(train, kinds) and isinstance(test, kinds)
    ):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    image_limit = max(1, HASHED_BYTES // max(1, arrays.images[:1].nbytes))
    train_limit = image_limit if isinstance(train, ArraySource) else CANDIDATES
    test_limit = image_limit if isinstance(test, ArraySource) else SAMPLE
    sample = test_examples[spread(len(test_examples), test_limit)]
    shape = arrays.images.shape[1:]
    candidates = train_examples[spread(len(train_examples), train_limit)]
    train_digests = set(_pixel_digests(train, candidates, shape)) - {b""}
    same = [digest in train_digests for digest in _pixel_digests(test, sample, shape)]
    return sample[np.array(same, bool)], sample


def _copied_files(
    train: IndexedSource, train_examples: Numbers, test: IndexedSource, test_examples: Numbers
) -> tuple[Numbers, Numbers]:
    """Compare two sources of encoded images; return the same pair as `_copied`."""
    none = np.zeros(0, np.int64)
    if train.table.digest is not None and test.table.digest is not None:
        chosen = test.table.digest[test_examples]
        is_copy = np.isin(chosen, train.table.digest[train_examples]) & (chosen != 0)
        return test_examples[is_copy], test_examples
    sample = test_examples[spread(len(test_examples), SAMPLE)]
    sizes, wanted = _sizes(train, train_examples), _sizes(test, sample)
    if sizes is None or wanted is None:
        return none, none
    candidates = train_examples[np.isin(sizes, wanted)]
    candidates = candidates[spread(len(candidates), CANDIDATES)]
    train_digests = {_digest(image) for image in train.read(candidates)[0] if image}
    same = [_digest(image) in train_digests for image in test.read(sample)[0]]
    return sample[np.array(same, bool)], sample


def _pixel_digests(
    source: ArraySource | IndexedSource, examples: Numbers, shape: tuple[int, ...]
) -> list[bytes]:
    """Return a digest of the pixels of each example; empty for a file of another image size."""
    if isinstance(source, ArraySource):
        return [_digest(source.images[i].tobytes()) for i in examples]
    return [_digest_of_file(encoded, shape) for encoded in source.read(examples)[0]]


def _digest_of_file(encoded: bytes, shape: tuple[int, ...]) -> bytes:
    """Return the digest of a file's pixels; empty if they do not decode to ``shape``."""
    height, width, channels = shape
    try:
        with open_image(encoded, height * width) as image:
            if image.size != (width, height) or channels not in FILE_CHANNELS:
                return b""
        return _digest(pillow_pixels(encoded, channels, height * width, False).tobytes())
    except Exception:  # Pillow raises many types of exception for a broken image
        return b""


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def _sizes(source: IndexedSource, examples: Numbers) -> np.ndarray | None:
    """Return the bytes of each example, or None if that takes too many file system calls."""
    table, length = source.table, np.asarray(source.table.length[examples])
    if (length >= 0).all():
        return length
    if is_remote(source.root) or len(examples) > STATED:
        return None

    def size(example: int) -> int:
        try:
            return os.stat(os.path.join(source.root, table.names[int(table.file[example])])).st_size
        except OSError:
            return -1

    return np.array([size(int(example)) for example in examples], np.int64)


def hold_out(labels: Labels, count: int, seed: int) -> tuple[Numbers, Numbers]:
    """Split the examples at random into those to keep and up to ``count`` to hold out.

    The same seed gives the same split. Each class keeps at least one example.

    Returns:
        The indices of the examples to keep, and of those held out.

    Raises:
        UserError: No class has two examples.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)  # one of each class is never held out
    out = np.sort(np.delete(order, first)[:count])
    if not len(out):
        raise UserError("no class has two labeled images, so none can be held out")
    return np.setdiff1d(np.arange(len(labels)), out), out
