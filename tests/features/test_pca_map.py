import numpy as np

from can_jax.features.pca_map import pca_colors


def test_patches_that_are_alike_have_like_colors():
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, (3, 16))
    tokens = rng.normal(size=(2, 24))[kinds] + 0.01 * rng.normal(size=(3, 16, 24))
    colors = pca_colors(tokens.astype(np.float32))
    assert colors.shape == (3, 16, 3) and colors.min() >= 0 and colors.max() <= 1
    red = colors[..., 0]
    assert abs(red[kinds == 0].mean() - red[kinds == 1].mean()) > 0.9  # the first component
    assert (pca_colors(np.ones((2, 4, 8), np.float32)) == 0.5).all()
