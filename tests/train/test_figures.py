import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from can_jax.distributed.mesh import make_mesh
from can_jax.models.can import Forward
from can_jax.train import figures
from can_jax.train.step import abstract_state, make_step
from tests.helpers.configs import small_config
from tests.train.states import random_state


def panel_of(config, images):
    step = make_step(config, lambda _: 0.0)
    state = random_state(abstract_state(step, make_mesh(config.mesh, jax.devices()[:1])))
    return jax.jit(lambda state, images: figures.make_panel(step, state, images))(state, images)


@pytest.fixture
def predicting(monkeypatch):
    """Replace the network by a function of its inputs, which predicts their patches."""

    def replace(prediction):
        def predict(config, model, inputs):
            nothing = jnp.zeros((len(inputs.clean), 0))
            return Forward(nothing[:, None], nothing, None, prediction(inputs))

        monkeypatch.setattr(figures, "forward", predict)

    return replace


@pytest.fixture(scope="module")
def panel():
    """The panel of a random network."""
    return jax.device_get(panel_of(small_config(), IMAGES))


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def test_right_prediction_gives_back_the_image(predicting):
    def prediction(inputs):
        clean = inputs.clean
        deviation = jnp.sqrt(clean.var(-1, ddof=1, keepdims=True) + 1e-6)
        return (clean - clean.mean(-1, keepdims=True)) / deviation

    predicting(prediction)
    panel = panel_of(small_config(), IMAGES)
    np.testing.assert_allclose(panel.clean, IMAGES / 255, atol=1e-5)
    np.testing.assert_allclose(panel.reconstruction, IMAGES / 255, atol=1e-4)


@pytest.mark.parametrize("target", ["scaled", "normalized", "unit"])
def test_right_noise_looks_like_the_noise(predicting, target):
    predicting(lambda inputs: inputs.noise.target(target, 0.05)[0])
    panel = panel_of(small_config(noise__target=target), IMAGES)
    np.testing.assert_allclose(panel.noise, panel.predicted_noise, atol=1e-5)
    assert np.asarray(panel.noise).std() > 0.01


def test_half_of_the_input_is_hidden(panel):
    blocks = panel.noise.reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    assert (blocks.reshape(48, -1).std(1) == 0).sum() == 24


def test_png(panel):
    png = figures.draw(panel, "step 3")
    image, pixels = Image.open(io.BytesIO(png)), figures.pixels_of(png)
    assert image.size[::-1] == pixels.shape[:2] and pixels.std() > 10


def test_predictions_that_only_denoising_trains_are_no_reconstruction():
    panel = panel_of(small_config(objective__reconstruction__weight=0.0), IMAGES)
    assert panel.reconstruction is None and panel.predicted_noise is not None


def test_panel_without_noise_has_no_noise_columns(predicting, panel):
    predicting(lambda inputs: inputs.clean)
    config = small_config(noise__sigma_max=0.0, objective__denoising__weight=0.0)
    quiet = jax.device_get(panel_of(config, IMAGES))
    assert quiet.noise is None and quiet.predicted_noise is None
    widths = [figures.pixels_of(figures.draw(each, "x")).shape[1] for each in (quiet, panel)]
    assert widths[0] < 0.7 * widths[1]  # three columns, not five
