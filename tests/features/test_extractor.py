import jax
import jax.numpy as jnp
import numpy as np
import pytest

from can_jax.data.evaluation.examples import EvaluationSet
from can_jax.data.sources.base import ArraySource
from can_jax.distributed.mesh import make_mesh
from can_jax.features.extractor import FeatureExtractor
from tests.helpers.configs import small_config


@pytest.mark.parametrize(("count", "devices"), [(7, 1), (1, 8), (16, 8), (21, 8)])
def test_every_image_counts_once_in_order(devices, count):
    mesh = make_mesh(small_config().mesh, jax.devices()[:devices])
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    source = ArraySource(images, np.arange(count, dtype=np.int32))
    examples = EvaluationSet(small_config(), source, count, labeled=False)
    extract = FeatureExtractor(lambda scale, x: scale * x.mean((1, 2)), mesh, batch_size=6)
    found = extract(jnp.float32(2), examples)
    np.testing.assert_allclose(found.features, 2 * images.mean((1, 2)), rtol=1e-5)
    assert found.labels.tolist() == list(range(count))
