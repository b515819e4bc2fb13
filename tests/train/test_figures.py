import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from can_jax.distributed.mesh import make_mesh
from can_jax.train import figures
from can_jax.train.losses import forward
from can_jax.train.step import abstract_state, initialize, make_step
from tests.helpers.configs import small_config


def panel_of(config, images, monkeypatch=None, prediction=None):
    step = make_step(config, lambda _: 0.0)
    state = initialize(step, abstract_state(step, make_mesh(config.mesh, jax.devices()[:1])))
    if prediction is not None:

        def perfect(config, model, inputs, *, train):
            return forward(config, model, inputs, train=train)._replace(
                prediction=prediction(inputs)
            )

        monkeypatch.setattr(figures, "forward", perfect)
    return figures.make_panel(step, state, jnp.asarray(images))


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def test_right_prediction_gives_back_the_image(monkeypatch):
    def prediction(inputs):
        clean = inputs.clean
        deviation = jnp.sqrt(clean.var(-1, ddof=1, keepdims=True) + 1e-6)
        return (clean - clean.mean(-1, keepdims=True)) / deviation

    panel = panel_of(small_config(), IMAGES, monkeypatch, prediction)
    np.testing.assert_allclose(panel.clean, IMAGES / 255, atol=1e-5)
    np.testing.assert_allclose(panel.reconstruction, IMAGES / 255, atol=1e-4)


@pytest.mark.parametrize("target", ["scaled", "unit"])
def test_right_noise_looks_like_the_noise(monkeypatch, target):
    def prediction(inputs):
        return inputs.noise.scaled if target == "scaled" else inputs.noise.unit

    panel = panel_of(small_config(noise__target=target), IMAGES, monkeypatch, prediction)
    np.testing.assert_allclose(panel.noise, panel.predicted_noise, atol=1e-5)
    assert np.asarray(panel.noise).std() > 0.01


def test_half_of_the_input_is_hidden():
    panel = panel_of(small_config(), IMAGES)
    blocks = np.asarray(panel.noise).reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    assert (blocks.reshape(48, -1).std(1) == 0).sum() == 24


def test_png():
    panel = jax.device_get(panel_of(small_config(), IMAGES))
    png = figures.draw(panel, "step 3")
    image, pixels = Image.open(io.BytesIO(png)), figures.pixels_of(png)
    assert image.size[::-1] == pixels.shape[:2] and pixels.std() > 10


def test_panel_without_noise_has_no_noise_columns():
    config = small_config(noise__sigma_max=0.0, objective__denoising__weight=0.0)
    panel = panel_of(config, IMAGES)
    assert panel.noise is None and panel.predicted_noise is None
    assert figures.draw(jax.device_get(panel), "x")[:4] == b"\x89PNG"
