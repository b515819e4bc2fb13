import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import linear_call

from can_jax.models import ops
from can_jax.utils.batching import batch_linear_calls


def doubled_back(scale, x):
    """A product with a scale, whose transpose is twice as large, so that its use shows."""
    return linear_call(lambda s, x: s * x, lambda s, x: 2 * s * x, scale, x)


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
def test_gradients_of_a_batch_are_those_of_each_example(axes):
    batch_linear_calls()
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal((3, 4) if axis == 0 else 4) for axis in axes]
    scale, x = map(jnp.asarray, drawn)

    def each(scale, x):
        return jax.grad(lambda x: (doubled_back(scale, x) ** 2).sum())(x)

    def example(i):
        return each(*(v[i] if axis == 0 else v for v, axis in zip((scale, x), axes, strict=True)))

    found = jax.vmap(each, axes)(scale, x)
    np.testing.assert_allclose(found, jnp.stack([example(i) for i in range(3)]), rtol=1e-6)
    # The transpose is the call's own outside of the batch, too.
    whole = jax.grad(lambda x: (jax.vmap(doubled_back, axes)(scale, x) ** 2).sum())(x)
    np.testing.assert_allclose(whole, found if axes[1] == 0 else found.sum(axis=0), rtol=1e-6)


def test_operations_of_the_network_can_be_batched():
    batch_linear_calls()
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3)))

    def slope(x):
        return jax.grad(lambda x: ops.gelu(ops.matrix_product(x, x.T)).sum())(x)

    np.testing.assert_allclose(jax.vmap(slope)(x)[1], slope(x[1]), rtol=1e-5)
