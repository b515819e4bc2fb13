import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from can_jax.distributed.sharding_rules import named_leaves
from can_jax.train.compute_copy import compute_copy, compute_types, stored_gradients
from can_jax.train.network import abstract_network
from can_jax.train.step import make_step
from tests.helpers.configs import small_config


def test_copy_has_the_types_in_which_layers_compute():
    config = small_config(model__dtype="bfloat16")
    state = jax.eval_shape(make_step(config).fresh)
    types = compute_types(abstract_network(config))
    copied = jax.eval_shape(lambda p: compute_copy(config, p, types), state.parameters)
    dtypes = {name: leaf.dtype for name, leaf in named_leaves(copied).items()}
    of_blocks = "encoder/blocks/layers"
    for name in ("attention/qkv/kernel", "attention/qkv/bias", "mlp/contract/kernel"):
        assert dtypes[f"{of_blocks}/{name}"] == jnp.bfloat16
    for name in (f"{of_blocks}/mlp_norm/scale", "encoder/class_token", "decoder/mask_token"):
        assert dtypes[name] == jnp.float32
    gradients = jax.eval_shape(
        lambda a, b: stored_gradients(config, a, b), copied, state.parameters
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {np.dtype("float32")}


def test_layer_that_computes_in_another_type_keeps_it():
    class Mixed(nnx.Module):
        def __init__(self, rngs):
            self.narrow = nnx.Linear(2, 2, dtype=jnp.bfloat16, rngs=rngs)
            self.exact = nnx.Linear(2, 2, dtype=jnp.float32, rngs=rngs)
            self.stored = nnx.Linear(2, 2, param_dtype=jnp.bfloat16, dtype=jnp.float32, rngs=rngs)

    model = nnx.eval_shape(lambda: Mixed(nnx.Rngs(0)))
    parameters = nnx.to_pure_dict(nnx.state(model))
    config, types = small_config(), compute_types(model)
    copied = jax.eval_shape(lambda p: compute_copy(config, p, types), parameters)
    assert copied["narrow"]["kernel"].dtype == copied["narrow"]["bias"].dtype == jnp.bfloat16
    assert copied["exact"]["kernel"].dtype == jnp.float32
    assert copied["stored"]["kernel"].dtype == jnp.bfloat16  # It is never widened here.
