"""Cells of a study on one device."""

import jax
import numpy as np

from can_jax.benchmark.device_study import Training, make_cell, read_images
from tests.helpers.configs import small_config


def test_each_seed_whitens_the_patches_of_its_own_first_images():
    recipe = small_config(batch_size=16)
    changes = {"model.patch_embed": "whitened", "noise.linear_bound": True}
    images = read_images(None, 64, 16)
    cell = make_cell("whitened", recipe, changes, 1, 2, images)
    training = Training(cell, jax.device_put((images.train, images.train_labels)))
    training.start()
    maps = np.asarray(training.states.batch_stats["encoder"]["patch_embed"]["map"])
    assert maps.shape == (2, 48, 48)
    np.testing.assert_allclose(maps, maps.swapaxes(1, 2), atol=1e-3)
    # The floor bounds the gain; smooth patterns have far more variance.
    assert np.linalg.eigvalsh(maps[0]).max() <= 1.001 * (0.05**2 / 3) ** -0.5
    assert np.linalg.eigvalsh(maps[0]).min() < 1
    assert not np.allclose(*maps, rtol=0.01)
    assert all(0 < bound < 1 for bound in training.linear_bound)
