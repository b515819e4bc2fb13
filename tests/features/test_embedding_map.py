import numpy as np

from can_jax.features.embedding_map import embedding_map


def test_clusters_stay_together():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = 4 * rng.normal(size=(3, 16))[labels] + 0.5 * rng.normal(size=(90, 16))
    places = embedding_map(features, perplexity=10.0)
    assert places.shape == (90, 2) and np.isfinite(places).all()
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(1)] == labels).all()
    np.testing.assert_array_equal(places, embedding_map(features, perplexity=10.0))
