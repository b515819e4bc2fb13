"""Metrics of the embeddings, compared with NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from can_jax.features.health import alignment
from can_jax.train.collapse import embedding_metrics


@pytest.mark.parametrize("views", [2, 3])
def test_alignment_is_the_mean_over_pairs_of_views(views):
    rows = np.random.default_rng(0).normal(size=(5, views, 7)).astype(np.float32)
    pairs = [(i, j) for i in range(views) for j in range(i)]
    wanted = np.mean([alignment(rows[:, i], rows[:, j]) for i, j in pairs])
    found = embedding_metrics(jnp.asarray(rows.reshape(-1, 7)), views)["embedding/alignment"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_equal_views_have_no_distance_and_one_view_no_alignment():
    row = np.random.default_rng(0).normal(size=(4, 1, 7)).astype(np.float32)
    equal = np.repeat(row, 2, axis=1).reshape(-1, 7)
    np.testing.assert_allclose(
        embedding_metrics(jnp.asarray(equal), 2)["embedding/alignment"], 0, atol=1e-6
    )
    assert "embedding/alignment" not in embedding_metrics(jnp.asarray(row[:, 0]), 1)
