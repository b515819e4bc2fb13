"""What a source has that states its images only."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from can_jax.config.resolve import resolve
from can_jax.data.evaluation.overlap import copies
from can_jax.data.fingerprint import differences
from can_jax.data.sources.base import ArraySource, Source
from can_jax.data.sources.mixture import MixtureSource
from can_jax.data.sources.registry import (
    SOURCES,
    SourceKind,
    available_splits,
    open_source,
    options_of,
    parts_of_mixture,
)
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Key, Whole
from tests.data.samples import encode, write_tfrecord
from tests.helpers.configs import small_config


class Listed(Source):
    """Images in a list."""

    def __init__(self, images, labels):
        self._encoded = [encode(image) for image in images]
        self._labels = np.asarray(labels, np.int32)

    @property
    def examples(self):
        return len(self._encoded)

    def read(self, examples):
        return [self._encoded[i] for i in examples], self._labels[examples]


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def registered(monkeypatch):
    """A registry with the source `mine`, which has a split `train` only."""

    def open_mine(data, split):
        if split != "train":
            raise UserError(f"no split {split}")
        return Listed(pictures(6), range(6))

    monkeypatch.setattr(SOURCES, "_values", dict(SOURCES._values))
    monkeypatch.setattr(SOURCES, "_origins", dict(SOURCES._origins))
    options = {"stride": Key(2, Whole(1, 9), "The stride.")}
    kind = SourceKind(open_mine, needs={"name": "give a name"}, options=options)
    SOURCES.register("mine", kind)


def test_fingerprint_tells_other_images_labels_and_counts():
    def phrases(images, labels):
        before = Listed(pictures(5), range(5)).fingerprint()
        return differences(before, Listed(images, labels).fingerprint())

    other = pictures(5)
    other[3] += 1
    assert phrases(pictures(5), range(5)) == []
    assert phrases(other, range(5)) == ["other content"]
    assert phrases(pictures(5), [0, 1, 2, 3, 3]) == ["other labels"]
    assert phrases(pictures(6)[:4], range(4))[0] == "4 examples instead of 5"


def test_pixels_are_compared_with_those_of_arrays():
    images = pictures(6)
    listed = Listed(images[:4], range(4))
    arrays = ArraySource(images[2:], np.arange(4, dtype=np.int32))
    rows = np.arange(4)
    assert copies(listed, rows, arrays, rows) == (2, 4)
    assert copies(arrays, rows, listed, rows) == (2, 4)
    assert copies(listed, rows, listed, rows) == (4, 4)


def test_copies_in_records_are_found_whatever_else_the_records_hold(tmp_path):
    """The number of bytes of a record is not that of its image."""
    encoded = [encode(image) for image in pictures(6)]
    write_tfrecord(tmp_path / "train-0.tfrecord", encoded[:4])
    write_tfrecord(tmp_path / "test-0.tfrecord", encoded[2:], labels=[1] * 4)
    data = resolve(small_config(data__source="tfrecord", data__path=str(tmp_path))).data
    train, test = (open_source(data, split) for split in ("train", "test"))
    rows = np.arange(4)
    assert copies(train, rows, test, rows) == (2, 4)
    assert copies(Listed(pictures(6)[:4], range(4)), rows, test, rows) == (0, 0)  # sizes unknown


def test_selection_and_mixture_take_any_source():
    listed = Listed(pictures(4), range(4))
    some = listed.selection(np.array([3, 1]), np.array([1, 0], np.int32), ("a", "b"))
    images, labels = some.read(np.array([1, 0]))
    assert images == listed.read(np.array([1, 3]))[0] and labels.tolist() == [0, 1]
    assert some.describe(0) == "example 3"
    mixture = MixtureSource([listed, some], (1.0, 2.0))
    assert mixture.read(np.array([4]))[0] == [images[1]]
    assert [part["examples"] for part in mixture.fingerprint()["parts"]] == [4, 2]
    assert mixture.same_files(MixtureSource([listed, some], (1.0, 2.0)))
    assert not mixture.same_files(MixtureSource([some, listed], (1.0, 2.0)))


def test_selection_of_all_arrays_keeps_the_order_of_the_selection():
    images = pictures(3)
    source = ArraySource(images, np.arange(3, dtype=np.int32))
    every, names = np.array([2, 0, 1]), ("a", "b", "c")
    chosen = source.selection(every, every.astype(np.int32), names)
    np.testing.assert_array_equal(chosen.images, images[every])
    assert source.selection(np.arange(3), source.labels, names).images is images


def test_registered_source_is_accepted_with_what_it_needs(registered):
    with pytest.raises(UserError, match="config.data.name is not set: give a name"):
        resolve(small_config(data__source="mine"))
    config = resolve(small_config(data__source="mine", data__name="x"))
    assert open_source(config.data, "train").examples == 6
    assert available_splits(config.data) == ("train",)
    mixed = ConfigDict(config.data.to_dict() | {"mixture": ({"source": "mine", "name": "x"},)})
    mixed.source = "mixture"
    assert open_source(mixed, "train").examples == 6


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("mine", (("strid", 3),), "options: unknown option 'strid'; did you mean 'stride'"),
        ("mine", (("xyz", 3),), "options: unknown option 'xyz'; the source mine has stride"),
        ("shapes", (("stride", 3),), "options: unknown option 'stride'; the source shapes has n"),
        ("mine", (("stride", 0),), "options.stride=0: give a whole number at least 1, at most 9"),
    ],
)
def test_options_of_a_source_are_checked(registered, source, options, message):
    with pytest.raises(UserError, match=f"^config.data.{message}"):
        resolve(small_config(data__source=source, data__name="x", data__options=options))


def test_options_of_a_source_have_defaults(registered):
    config = small_config(data__source="mine", data__name="x")
    assert options_of(resolve(config).data) == {"stride": 2}
    config.data.options = (("stride", 3),)
    assert options_of(resolve(config).data) == {"stride": 3}
    part = {"source": "mine", "name": "y", "options": (("stride", 4),)}
    config.data.update(source="mixture", mixture=(part,), options=())
    ((block, _),) = parts_of_mixture(resolve(config).data)
    assert options_of(block) == {"stride": 4}


def test_parts_of_a_mixture_share_the_caches_of_the_whole():
    parts = ({"path": "/a"}, {"path": "/b", "cache_gb": 5.0}, {"path": "/c"})
    caches = {"data__cache_gb": 3.0, "data__disk_cache": "/d", "data__disk_cache_gb": 90.0}
    config = small_config(data__source="mixture", data__mixture=parts, **caches)
    blocks = [block for block, _ in parts_of_mixture(resolve(config).data)]
    assert [block.cache_gb for block in blocks] == [1.5, 5.0, 1.5]
    assert [block.disk_cache_gb for block in blocks] == [30.0, 30.0, 30.0]


def test_source_without_a_registration_is_refused():
    with pytest.raises(UserError, match="config.data.source='mine': give one of shapes, arrays"):
        resolve(small_config(data__source="mine"))
