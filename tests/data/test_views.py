import numpy as np
import pytest
from PIL import Image

from can_jax.data.decoding.decode import pillow_pixels
from can_jax.data.pipeline.views import CenterView, RandomViews, _reduced
from can_jax.utils.tensorflow import tensorflow
from tests.data.samples import encode
from tests.helpers.configs import small_config

tf = tensorflow()


def random_views(**changes):
    return RandomViews.from_config(small_config(**changes))


def smooth_image(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_views_of_a_file_are_those_of_its_pixels(kind):
    views = random_views(data__image_size=16)
    # At half resolution, colour would be interpolated differently at the border of a window.
    options = {"jpeg": {"subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
    encoded = encode(smooth_image(30, 27), kind, **options)
    pixels = tf.constant(pillow_pixels(encoded, 3, 10**6, False))
    for position in range(6):
        found = views.from_bytes(encoded, tf.constant(position, tf.int64)).numpy()
        wanted = views.from_pixels(pixels, tf.constant(position, tf.int64)).numpy()
        assert found.shape == views.shape == (2, 16, 16, 3)
        np.testing.assert_array_equal(found, wanted)


def test_large_jpeg_is_decoded_smaller_and_looks_the_same():
    views = random_views(data__image_size=16)
    image = smooth_image(401, 535)
    encoded = encode(image, "jpeg", quality=95)
    boxes = views._boxes(tf.constant([401, 535]), tf.constant(3, tf.int64)).numpy()
    found = views.from_bytes(encoded, tf.constant(3, tf.int64)).numpy()
    for (top, left, height, width), view in zip(boxes, found, strict=True):
        assert min(height, width) > 128  # so that it is decoded at an eighth
        box = (left, top, left + width, top + height)
        wanted = Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR, box=box)
        assert abs(view - np.asarray(wanted).astype(float)).mean() < 9


def test_bicubic_views_are_pillows_of_the_whole_jpeg():
    views = random_views(
        data__image_size=16, augment__crop_interpolation="bicubic", augment__crop_fit="clamp"
    )
    encoded = encode(smooth_image(401, 535), "jpeg", quality=95)
    position = tf.constant(3, tf.int64)
    boxes = views._boxes(tf.constant([401, 535]), position).numpy()
    image = Image.fromarray(pillow_pixels(encoded, 3, 10**6, False))
    for (top, left, height, width), view in zip(
        boxes, views.from_bytes(encoded, position).numpy(), strict=True
    ):
        part = image.crop((left, top, left + width, top + height))
        wanted = np.asarray(part.resize((16, 16), Image.Resampling.BICUBIC), float)
        assert abs(view - wanted).max() <= 4 and abs(view - wanted).mean() < 0.6


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_reduced_boxes_stay_inside(ratio):
    rng = np.random.default_rng(ratio)
    for _ in range(200):
        size = rng.integers(1, 60, 2)
        start = rng.integers(0, size)
        boxes = np.concatenate([start, rng.integers(1, size - start + 1)])[None]
        top, left, height, width = _reduced(
            tf.constant(boxes, tf.int32), tf.constant(size, tf.int32), tf.constant(ratio)
        )[0].numpy()
        sides = -(-size // ratio)
        assert top >= 0 and left >= 0 and height >= 1 and width >= 1
        assert top + height <= sides[0] and left + width <= sides[1]


def test_upright_views_come_from_the_upright_image():
    image = smooth_image(48, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    encoded = encode(np.rot90(image), "jpeg", exif=exif, quality=100, subsampling=0)
    as_it_is, upright = (random_views(data__exif_orientation=on) for on in (False, True))
    wanted = upright.from_pixels(tf.constant(image), tf.constant(1, tf.int64)).numpy()
    found = upright.from_bytes(encoded, tf.constant(1, tf.int64)).numpy()
    assert abs(found - wanted.astype(float)).mean() < 6
    lying = as_it_is.from_bytes(encoded, tf.constant(1, tf.int64)).numpy()
    assert abs(lying - wanted.astype(float)).mean() > 12


def test_evaluation_view():
    view = CenterView.from_config(small_config())
    image = smooth_image(16, 16)
    found = view.from_bytes(encode(image), tf.constant(0, tf.int64))
    np.testing.assert_array_equal(found, image[None])
    assert view.shape == (1, 16, 16, 3)
