import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from can_jax.augment.crops import (
    crop_and_resize,
    random_boxes,
    resize_and_center_crop,
    uniforms,
)
from can_jax.utils.tensorflow import tensorflow

tf = tensorflow()
AREA, ASPECT = (0.2, 1.0), (3 / 4, 4 / 3)


def boxes(seed, positions, size, views=2, area=AREA):
    return random_boxes(seed, tf.constant(positions, tf.int64), size, views, area, ASPECT).numpy()


def test_uniforms_are_uniform_and_independent():
    drawn = uniforms(7, tf.range(50_000, dtype=tf.int64), 3).numpy()
    assert (drawn >= 0).all() and (drawn < 1).all()
    for column in drawn.T:
        counts = np.histogram(column, 20, (0, 1))[0]
        assert ((counts - 2500) ** 2 / 2500).sum() < 45  # chi-square, 19 degrees of freedom
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.02
    assert abs(np.corrcoef(drawn[:, 0], uniforms(8, np.arange(50_000), 3)[:, 0])[0, 1]) < 0.02


def test_numbers_are_the_same_for_ever():
    # A change here changes every run that is resumed.
    assert uniforms(0, tf.constant([0, 2**40], tf.int64), 2).numpy().tolist() == STREAM


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**40))
def test_boxes_lie_inside_the_image(height, width, position):
    top, left, box_height, box_width = boxes(0, [position], (height, width))[0].T
    assert (top >= 0).all() and (left >= 0).all()
    assert (box_height >= 1).all() and (top + box_height <= height).all()
    assert (box_width >= 1).all() and (left + box_width <= width).all()


def test_boxes_have_the_wanted_areas_and_aspects():
    _, _, height, width = boxes(0, range(4000), (500, 500), views=1)[:, 0].T
    share, aspect = height * width / 500**2, width / height
    assert share.min() > 0.19 and share.max() <= 1.0 and 0.5 < share.mean() < 0.62
    assert aspect.min() > 0.74 and aspect.max() < 1.35
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.01)


def test_a_box_depends_on_seed_position_and_view_alone():
    every = boxes(3, range(10), (40, 50))
    np.testing.assert_array_equal(every[4:6], boxes(3, [4, 5], (40, 50)))
    assert not np.array_equal(every, boxes(4, range(10), (40, 50)))
    assert not np.array_equal(every[:, 0], every[:, 1])


def test_image_that_no_box_fits_is_cut_in_the_middle():
    box = boxes(0, [0], (4, 1000), area=(1.0, 1.0))[0, 0]
    np.testing.assert_array_equal(box, [0, 498, 4, 5])


@pytest.mark.parametrize("size", [(300, 300), (60, 400)])
def test_clamped_boxes_are_those_of_mae(size):
    """As `RandomResizedCrop.get_params` in MAE's util/crop.py, of the same random numbers."""
    positions, area = np.arange(300), (0.08, 1.0)
    found = random_boxes(5, positions, size, 1, area, ASPECT, "clamp").numpy()[:, 0]
    drawn = uniforms(5, tf.constant(positions, tf.int64), 22).numpy().astype(float)
    target = np.prod(size) * (area[0] + (area[1] - area[0]) * drawn[:, 0])
    ratio = np.exp(np.log(ASPECT[0]) + (np.log(ASPECT[1]) - np.log(ASPECT[0])) * drawn[:, 10])
    height = np.minimum(np.round(np.sqrt(target / ratio)), size[0])
    width = np.minimum(np.round(np.sqrt(target * ratio)), size[1])
    top = np.floor(drawn[:, 20] * (size[0] - height + 1))
    left = np.floor(drawn[:, 21] * (size[1] - width + 1))
    wanted = np.stack([top, left, height, width], axis=1)
    assert (found == wanted).all(axis=1).mean() > 0.99  # float32 may round another way
    assert (found[:, 2] == size[0]).mean() > (0.6 if size[0] == 60 else 0.01)


@pytest.mark.parametrize("size", [(20, 20), (50, 40), (130, 90)])
def test_bicubic_crops_are_pillows(size):
    """torchvision's `resized_crop` of a Pillow image: cut first, then resize."""
    coarse = np.random.default_rng(3).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((100, 90), Image.Resampling.BICUBIC)
    boxes = [[7, 11, 64, 52], [0, 0, 90, 100]]
    found = crop_and_resize(tf.constant(np.asarray(image)), tf.constant(boxes), size, "bicubic")
    for view, (top, left, height, width) in zip(found.numpy().astype(float), boxes, strict=True):
        part = image.crop((left, top, left + width, top + height))
        wanted = np.asarray(part.resize(size[::-1], Image.Resampling.BICUBIC), float)
        # Pillow rounds and clips between its passes along rows and columns.
        assert abs(view - wanted).max() <= 5 and abs(view - wanted).mean() < 0.45


def test_resizing_is_bilinear_with_half_pixel_centres():
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    whole = np.array([[0, 0, 24, 30]], np.int32)
    for size in ((24, 30), (12, 15), (50, 41)):
        found = crop_and_resize(tf.constant(image), tf.constant(whole), size)[0].numpy()
        np.testing.assert_allclose(found, by_hand(image, size), atol=0.51)


def by_hand(image, size):
    """Each sample from its four neighbours, those beyond the border being the border."""
    places = [
        np.clip((np.arange(n) + 0.5) * side / n - 0.5, 0, side - 1)
        for n, side in zip(size, image.shape, strict=False)
    ]
    y, x = (p[:, None] for p in places)
    low, high = ([np.floor(p).astype(int), np.ceil(p).astype(int)] for p in places)
    rows = image[low[0]] * (1 - y % 1)[..., None] + image[low[1]] * (y % 1)[..., None]
    return rows[:, high[0]] * (1 - x % 1) + rows[:, high[1]] * (x % 1)


def test_much_smaller_views_are_antialiased():
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    box = tf.constant([[0, 0, 96, 96]])
    found = crop_and_resize(tf.constant(image), box, (12, 12))[0].numpy().astype(float)
    wanted = np.asarray(Image.fromarray(image).resize((12, 12), Image.Resampling.BILINEAR))
    assert abs(found - wanted).max() <= 1.0 and found.std() < 0.25 * image.std()


def test_inner_boxes_take_their_pixels():
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    boxes = tf.constant([[3, 5, 8, 6], [0, 0, 8, 6]])
    found = crop_and_resize(tf.constant(image), boxes, (8, 6)).numpy()
    np.testing.assert_array_equal(found[0], image[3:11, 5:11])
    np.testing.assert_array_equal(found[1], image[:8, :6])


def test_evaluation_of_the_wanted_size_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_and_center_crop(tf.constant(image), (8, 6)), image)


@pytest.mark.parametrize("shape", [(40, 60), (61, 33), (1, 1), (3, 5000), (7000, 1)])
def test_evaluation_of_any_size(shape):
    image = np.full((*shape, 3), 77, np.uint8)
    assert (resize_and_center_crop(tf.constant(image), (16, 24)).numpy() == 77).all()


@pytest.mark.parametrize("shape", [(300, 400), (500, 333), (256, 256), (100, 90), (640, 241)])
@pytest.mark.parametrize(("side", "whole"), [(224, 256), (288, 288)])
def test_evaluation_is_that_of_torchvision(shape, side, whole):
    """MAE's `Resize(whole, BICUBIC)` and `CenterCrop(side)`, written with Pillow."""
    rng = np.random.default_rng(sum(shape))
    smooth = Image.fromarray(rng.integers(0, 256, (23, 31, 3), dtype=np.uint8))
    image = smooth.resize(shape[::-1], Image.Resampling.BICUBIC)
    height, width = shape
    short = min(shape)
    size = int(whole * width / short), int(whole * height / short)
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (round((length - side) / 2.0) for length in resized.shape[:2])
    wanted = resized[top : top + side, left : left + side].astype(float)
    found = resize_and_center_crop(tf.constant(np.asarray(image)), (side, side)).numpy()
    assert abs(found - wanted).mean() < 0.3 and abs(found - wanted).max() <= 3


STREAM = [[0.02327805757522583, 0.399982750415802], [0.9467357397079468, 0.4219070076942444]]
