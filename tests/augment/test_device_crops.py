import jax
import jax.numpy as jnp
import numpy as np
import pytest

from can_jax.augment import crops, device_crops
from can_jax.augment.device_crops import DRAWS, box_of, crop, random_crops
from can_jax.utils.tensorflow import tensorflow

AREA, ASPECT = (0.2, 1.0), (3 / 4, 4 / 3)


@pytest.mark.parametrize(("size", "area", "aspect"), [
    ((32, 32), AREA, ASPECT),
    ((24, 16), AREA, ASPECT),
    ((32, 32), (0.9, 1.0), (5.0, 8.0)),  # no box fits
])  # fmt: skip
def test_boxes_are_those_of_the_host(monkeypatch, size, area, aspect):
    tf = tensorflow()
    drawn = np.random.default_rng(0).random((500, 1, DRAWS), np.float32)
    monkeypatch.setattr(crops, "uniforms", lambda *_: tf.constant(drawn.reshape(500, DRAWS)))
    wanted = crops.random_boxes(0, np.arange(500), size, 1, area, aspect).numpy()[:, 0]
    found = jax.vmap(lambda d: box_of(d, size, area, aspect))(drawn[:, 0])
    differing = (np.asarray(found) != wanted).any(axis=1)
    assert differing.mean() < 0.01  # where a side is rounded from nearly a half


def test_crops_are_those_of_the_host():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3), np.uint8)
    boxes = np.array([[0, 0, 20, 30], [3, 5, 7, 20], [19, 29, 1, 1], [2, 4, 16, 16]], np.int32)
    wanted = crops.crop_and_resize(image, boxes, (16, 16)).numpy()
    found = jax.vmap(lambda box: crop(jnp.asarray(image), box, (16, 16)))(boxes.astype(np.float32))
    differences = np.abs(np.asarray(found).astype(int) - wanted)
    assert differences.max() <= 1 and (differences > 0).mean() < 0.01
    assert (np.asarray(found)[3] == image[2:18, 4:20]).all()


def test_a_view_depends_on_its_key_alone():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    keys = jax.random.split(jax.random.key(0), 3)

    def views(image, key):
        return random_crops(image, key, 2, AREA, ASPECT, (16, 16))

    together = np.asarray(jax.vmap(views)(images, keys))
    assert together.shape == (3, 2, 16, 16, 3) and together.dtype == np.uint8
    assert (np.asarray(views(jnp.asarray(images[1]), keys[1])) == together[1]).all()
    assert (together[:, 0] != together[:, 1]).any()


def test_images_that_need_antialiasing_are_refused():
    image = jnp.zeros((40, 32, 3), np.uint8)
    with pytest.raises(AssertionError, match="twice"):
        random_crops(image, jax.random.key(0), 1, AREA, ASPECT, (16, 16))
    assert device_crops.ATTEMPTS == crops.ATTEMPTS
