"""Numbers that two splits share, and a share of one split that is held out of it."""

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

SAMPLE = 256  # test examples whose bytes are compared
CANDIDATES = 2048  # training examples that are read for them
HASHED_BYTES = 10**9  # of arrays
STATED = 200_000  # files whose sizes are looked up


def same_examples(one: Source, other: Source) -> bool:
    """Return whether two sources read the very same files."""
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
    return source.root if is_remote(source.root) else os.path.realpath(source.root)


def copies(
    train: Source, train_examples: Numbers, test: Source, test_examples: Numbers
) -> tuple[int, int]:
    """Count test examples whose bytes are those of a training example.

    Where both indexes hold digests all are compared, and of arrays all or `HASHED_BYTES`. Otherwise
    a sample is compared with files of the same size. Files and arrays are compared by the pixels of
    a sample of the files. Mixtures are compared part by part.

    Returns:
        Copies that were found, and test examples that were compared.
    """
    found = compared = 0
    for part, chosen in _parts(test, test_examples):
        seen, known = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for other, learned in _parts(train, train_examples):
            copied, looked_at = _copied(other, learned, part, chosen)
            if same_examples(other, part):
                copied = np.union1d(copied, np.intersect1d(chosen, learned))
                looked_at = chosen
            known, seen = np.union1d(known, copied), np.union1d(seen, looked_at)
        found, compared = found + len(known), compared + len(seen)
    return found, compared


def _parts(source: Source, examples: Numbers) -> list[tuple[Source, Numbers]]:
    """Return the parts of a mixture, or the source itself, with the numbers chosen in each."""
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
    """Return the test examples that are copies, and those that were compared."""
    if isinstance(train, IndexedSource) and isinstance(test, IndexedSource):
        return _copied_files(train, train_examples, test, test_examples)
    arrays = train if isinstance(train, ArraySource) else test
    kinds = ArraySource | IndexedSource
    if not (
        isinstance(arrays, ArraySource) and isinstance(train, kinds) and isinstance(test, kinds)
    ):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    most = max(1, HASHED_BYTES // max(1, arrays.images[:1].nbytes))
    learn = most if isinstance(train, ArraySource) else CANDIDATES
    look = most if isinstance(test, ArraySource) else SAMPLE
    sample = test_examples[spread(len(test_examples), look)]
    shape = arrays.images.shape[1:]
    some = train_examples[spread(len(train_examples), learn)]
    known = set(_pixel_digests(train, some, shape)) - {b""}
    same = [digest in known for digest in _pixel_digests(test, sample, shape)]
    return sample[np.array(same, bool)], sample


def _copied_files(
    train: IndexedSource, train_examples: Numbers, test: IndexedSource, test_examples: Numbers
) -> tuple[Numbers, Numbers]:
    """Return what `_copied` does, of two sources of encoded images."""
    none = np.zeros(0, np.int64)
    if train.table.digest is not None and test.table.digest is not None:
        chosen = test.table.digest[test_examples]
        found = np.isin(chosen, train.table.digest[train_examples]) & (chosen != 0)
        return test_examples[found], test_examples
    sample = test_examples[spread(len(test_examples), SAMPLE)]
    sizes, wanted = _sizes(train, train_examples), _sizes(test, sample)
    if sizes is None or wanted is None:
        return none, none
    candidates = train_examples[np.isin(sizes, wanted)]
    candidates = candidates[spread(len(candidates), CANDIDATES)]
    known = {_digest(image) for image in train.read(candidates)[0] if image}
    same = [_digest(image) in known for image in test.read(sample)[0]]
    return sample[np.array(same, bool)], sample


def _pixel_digests(
    source: ArraySource | IndexedSource, examples: Numbers, shape: tuple[int, ...]
) -> list[bytes]:
    """Return a digest of the pixels of each example; of files of another size nothing."""
    if isinstance(source, ArraySource):
        return [_digest(source.images[i].tobytes()) for i in examples]
    return [_digest_of_file(encoded, shape) for encoded in source.read(examples)[0]]


def _digest_of_file(encoded: bytes, shape: tuple[int, ...]) -> bytes:
    height, width, channels = shape
    try:
        with open_image(encoded, height * width) as image:
            if image.size != (width, height) or channels not in FILE_CHANNELS:
                return b""
        return _digest(pillow_pixels(encoded, channels, height * width, False).tobytes())
    except Exception:  # Pillow raises every kind; all say that this is no image
        return b""


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def _sizes(source: IndexedSource, examples: Numbers) -> np.ndarray | None:
    """Return the bytes of each example; None where too many files would have to be asked."""
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
    """Return the places of examples to keep, and of ``count`` or fewer that are held out.

    They are drawn at random, the same ones for the same seed. Each class keeps one at least.

    Raises:
        UserError: no class has two examples.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)  # of each class, which stays
    out = np.sort(np.delete(order, first)[:count])
    if not len(out):
        raise UserError("no class has two labeled images, so none can be held out")
    return np.setdiff1d(np.arange(len(labels)), out), out
