import numpy as np

from can_jax.data.shapes import LABEL_NAMES, open_shapes
from can_jax.probes.knn import knn_accuracy


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


def test_other_channels():
    assert open_shapes(20, (16, 16), 5, "train").images.shape == (20, 16, 16, 5)
