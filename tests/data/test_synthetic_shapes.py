import numpy as np
import pytest

from can_jax.data.sources import synthetic_shapes as shapes
from can_jax.data.sources.synthetic_shapes import LABEL_NAMES, open_shapes
from can_jax.features.knn import knn_accuracy


def test_images_labels_and_splits():
    train, test = (open_shapes(600, (24, 32), 3, split) for split in ("train", "test"))
    assert train.images.shape == (600, 24, 32, 3) and train.images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(train.labels), [60] * 10)
    assert len(LABEL_NAMES) == 10
    assert not np.array_equal(train.images[:100], test.images[:100])
    np.testing.assert_array_equal(train.images, open_shapes(600, (24, 32), 3, "train").images)


def test_pixels_say_little_about_the_class():
    train, test = (open_shapes(3000, (40, 40), 3, split) for split in ("train", "test"))
    flat = [
        source.images.reshape(source.examples, -1).astype(np.float32) for source in (train, test)
    ]
    accuracy = knn_accuracy(flat[0], train.labels, flat[1][:500], test.labels[:500])
    assert 8 < accuracy < 25


def test_outlines_tell_the_classes_apart():
    # With all nuisance averaged out, the share of an image that a figure covers is its own.
    source = open_shapes(2000, (40, 40), 1, "train")
    spread = [
        source.images[source.labels == label].std(axis=(1, 2, 3)).mean() for label in range(10)
    ]
    assert max(spread) > 1.2 * min(spread)


def test_factors_are_those_of_the_images():
    source = open_shapes(300, (32, 32), 3, "train")  # more than one chunk
    found = source.factors()
    assert {len(values) for values in found.values()} == {source.examples}
    np.testing.assert_array_equal(found["class"], source.labels)
    pixels = source.images / 255
    for channel, name in enumerate(("red", "green", "blue")):
        # Figures cover less than half of an image.
        median = np.median(pixels[..., channel], axis=(1, 2))
        assert np.corrcoef(median, found[f"background {name}"])[0, 1] > 0.97
    # The shading is the slope of the image; figures add noise to it.
    rows = np.linspace(-1, 1, 32) @ pixels.mean(axis=(2, 3)).T
    assert np.corrcoef(rows, found["shading of rows"])[0, 1] > 0.5
    selected = source.selection(np.arange(9), source.labels[:9], source.label_names)
    assert not selected.factors()  # of a part of the examples they are not known


def test_other_channels():
    assert open_shapes(20, (16, 16), 5, "train").images.shape == (20, 16, 16, 5)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder where sets of any size are kept, two at most."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shapes, "KEPT_BYTES", 1)
    monkeypatch.setattr(shapes, "KEPT_FILES", 2)
    return tmp_path / "can_jax" / "shapes"


def test_a_kept_set_is_the_one_that_was_drawn(kept, monkeypatch):
    drawn = open_shapes(20, (16, 16), 3, "train")
    monkeypatch.setattr(shapes, "draw", None)
    again = open_shapes(20, (16, 16), 3, "train")
    np.testing.assert_array_equal(again.images, drawn.images)
    np.testing.assert_array_equal(again.labels, drawn.labels)


@pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"no array"])
def test_a_damaged_file_is_drawn_again(kept, damage):
    drawn = open_shapes(20, (16, 16), 3, "train").images
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    np.testing.assert_array_equal(open_shapes(20, (16, 16), 3, "train").images, drawn)
    assert file.read_bytes() == whole


def test_few_are_kept_and_none_where_nothing_can_be(kept, monkeypatch):
    for count in (20, 30, 40):
        open_shapes(count, (16, 16), 3, "train")
    assert len(list(kept.iterdir())) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no")
    assert len(open_shapes(20, (16, 16), 3, "train").images) == 20
