import numpy as np
import pytest

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


@pytest.mark.parametrize(("examples", "width"), [(1, 4), (2, 4), (3, 1), (4, 2)])
def test_few_examples_have_places_in_the_plane(examples, width):
    points = embedding_map(np.random.default_rng(0).normal(size=(examples, width)) + 1.0)
    assert points.shape == (examples, 2) and np.isfinite(points).all()
