"""Detection of images that two splits share, and random hold-out of examples of one split."""

import numpy as np

from can_jax.data.decoding.decode import FILE_CHANNELS, pillow_pixels
from can_jax.data.decoding.open_image import open_image
from can_jax.data.evaluation.examples import spread
from can_jax.data.sources.base import Source
from can_jax.data.sources.labels import Labels, Numbers
from can_jax.data.storage.digest import digest_of_bytes
from can_jax.utils.errors import UserError

SAMPLE = 256  # the maximum number of test files whose content is compared
CANDIDATES = 2048  # the maximum number of training files read for this comparison
HASHED_BYTES = 10**9  # the maximum bytes of an in-memory array that are hashed


def copies(
    train: Source, train_examples: Numbers, test: Source, test_examples: Numbers
) -> tuple[int, int]:
    """Count the test examples that duplicate a training example.

    Files are duplicates if their bytes are equal. If the indexes of both splits hold content
    digests, all examples are compared. Without content digests, a sample of the test files is
    compared with up to `CANDIDATES` training files: those of the same size in bytes, then those of
    unknown size. Copies among further files are not found.

    If one of the splits is an in-memory array, a sample of the images is compared by pixels instead
    of file content. If both splits read the same files, examples with equal indices are duplicates
    as well. In mixtures, each part of the test split is compared with each part of the training
    split.

    Returns:
        The number of duplicates, and the number of test examples that were compared.
    """
    duplicates = compared = 0
    for part, chosen in _parts(test, test_examples):
        compared_rows, copied_rows = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for other, learned in _parts(train, train_examples):
            copied, examined = _copied(other, learned, part, chosen)
            if other.same_files(part):
                copied = np.union1d(copied, np.intersect1d(chosen, learned))
                examined = chosen
            copied_rows, compared_rows = (
                np.union1d(copied_rows, copied),
                np.union1d(compared_rows, examined),
            )
        duplicates, compared = duplicates + len(copied_rows), compared + len(compared_rows)
    return duplicates, compared


def _parts(source: Source, examples: Numbers) -> list[tuple[Source, Numbers]]:
    """Return pairs of a source and the selected indices in it: one pair for each part of a mixture,
    or one pair for a source that is not a mixture."""
    if not source.parts:
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
    """Return the indices of the test examples that are duplicates, and the indices of all test
    examples that were compared."""
    decoded = test.images if train.images is None else train.images
    if decoded is None:
        return _copied_files(train, train_examples, test, test_examples)
    image_limit = max(1, HASHED_BYTES // max(1, decoded[:1].nbytes))
    train_limit = CANDIDATES if train.images is None else image_limit
    test_limit = SAMPLE if test.images is None else image_limit
    sample = test_examples[spread(len(test_examples), test_limit)]
    shape = decoded.shape[1:]
    candidates = train_examples[spread(len(train_examples), train_limit)]
    train_digests = set(_pixel_digests(train, candidates, shape)) - {b""}
    same = [digest in train_digests for digest in _pixel_digests(test, sample, shape)]
    return sample[np.array(same, bool)], sample


def _copied_files(
    train: Source, train_examples: Numbers, test: Source, test_examples: Numbers
) -> tuple[Numbers, Numbers]:
    """Compare two sources of encoded images by the bytes of their files, and return two index
    arrays as `_copied` does."""
    none = np.zeros(0, np.int64)
    if train.content_digests is not None and test.content_digests is not None:
        chosen = test.content_digests[test_examples]
        is_copy = np.isin(chosen, train.content_digests[train_examples]) & (chosen != 0)
        return test_examples[is_copy], test_examples
    sample = test_examples[spread(len(test_examples), SAMPLE)]
    sizes, wanted = train.byte_sizes(train_examples), test.byte_sizes(sample)
    if sizes is None or wanted is None:
        return none, none
    same_size = np.isin(sizes, wanted[wanted >= 0])
    unknown = ~same_size & ((sizes < 0) | (wanted < 0).any())
    candidates = train_examples[same_size][spread(int(same_size.sum()), CANDIDATES)]
    if room := CANDIDATES - len(candidates):
        others = train_examples[unknown]
        candidates = np.concatenate([candidates, others[spread(len(others), room)]])
    train_digests = {digest_of_bytes(image) for image in train.read(candidates)[0] if image}
    same = [digest_of_bytes(image) in train_digests for image in test.read(sample)[0]]
    return sample[np.array(same, bool)], sample


def _pixel_digests(source: Source, examples: Numbers, shape: tuple[int, ...]) -> list[bytes]:
    """Return a digest of the pixels of each example; empty bytes for a file whose image does not
    have the shape ``shape``."""
    if source.images is not None:
        return [digest_of_bytes(source.images[i].tobytes()) for i in examples]
    return [_digest_of_file(encoded, shape) for encoded in source.read(examples)[0]]


def _digest_of_file(encoded: bytes, shape: tuple[int, ...]) -> bytes:
    """Return a digest of the pixels of an encoded image; empty bytes if it does not decode to
    ``shape``."""
    height, width, channels = shape
    try:
        with open_image(encoded, height * width) as image:
            if image.size != (width, height) or channels not in FILE_CHANNELS:
                return b""
        return digest_of_bytes(pillow_pixels(encoded, channels, height * width, False).tobytes())
    except Exception:  # Pillow raises many types of exception for a broken image
        return b""


def hold_out(labels: Labels, count: int, seed: int) -> tuple[Numbers, Numbers]:
    """Divide examples at random into those to keep and at most ``count`` to hold out.

    With the same ``seed``, the same examples are held out. At least one example of each class is
    kept.

    Returns:
        The indices of the examples to keep, and of the examples to hold out, both ascending.

    Raises:
        UserError: No class has two examples.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)  # one of each class is never held out
    out = np.sort(np.delete(order, first)[:count])
    if not len(out):
        raise UserError("no class has two labeled images, so no image can be held out")
    return np.setdiff1d(np.arange(len(labels)), out), out
