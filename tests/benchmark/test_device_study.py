"""Cells of a study on one device."""

import jax
import numpy as np

from can_jax.benchmark.device_cells import make_cell, read_images
from can_jax.benchmark.device_study import Training
from tests.helpers.configs import small_config


def test_each_seed_whitens_the_patches_of_its_own_first_images():
    recipe = small_config(batch_size=16)
    changes = {"model.patch_embed": "whitened", "noise.linear_bound": True}
    images = read_images(None, 64, 16)
    cell = make_cell("whitened", recipe, changes, 1, (0, 1), images)
    training = Training(cell, jax.device_put((images.train, images.train_labels))).compile()
    training.start()
    maps = np.asarray(training.states.batch_stats["encoder"]["patch_embed"]["map"])
    assert maps.shape == (2, 48, 48)
    np.testing.assert_allclose(maps, maps.swapaxes(1, 2), atol=1e-3)
    # The floor bounds the gain; smooth patterns have far more variance.
    assert np.linalg.eigvalsh(maps[0]).max() <= 1.001 * (0.05**2 / 3) ** -0.5
    assert np.linalg.eigvalsh(maps[0]).min() < 1
    assert not np.allclose(*maps, rtol=0.01)
    assert all(0 < bound < 1 for bound in training.linear_bound)


def test_a_learning_rate_of_a_run_equals_that_of_the_recipe_even_after_a_resume(tmp_path):
    images = read_images(None, 32, 16)
    placed = jax.device_put((images.train, images.train_labels))

    def parameters(rate, seeds, rates):
        recipe = small_config(batch_size=16, optimizer__learning_rate=rate)
        cell = make_cell("rates", recipe, {}, 2, seeds, images, rates)
        training = Training(cell, placed).compile()
        training.start()
        list(training.train(2))
        training.save(tmp_path)
        resumed = Training(cell, placed)
        assert resumed.restore(tmp_path) and resumed.epoch == 2
        return jax.device_get(resumed.states.parameters)

    tuned = parameters(0.01, (0, 0), (0.01, 0.002))
    for run, rate in enumerate((0.01, 0.002)):
        alone = parameters(rate, (0,), ())
        # Adam amplifies rounding where a gradient is 0, such as that of the biases of the keys.
        for one, other in zip(jax.tree.leaves(tuned), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(one[run], other[0], rtol=1e-4, atol=2e-4)
    first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], tuned) for i in (0, 1))
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True))


def test_held_out_images_are_training_images_that_are_not_trained_on():
    images = read_images(None, 40, 16)
    part = images.held_out(0.1)
    np.testing.assert_array_equal(np.concatenate([part.train, part.test]), images.train)
    assert len(part.test) == len(part.test_labels) == 4
