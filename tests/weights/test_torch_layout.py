import jax
import numpy as np
import pytest
from flax import nnx

from can_jax.models.can import CAN
from can_jax.train.network import heads
from can_jax.utils.errors import UserError
from can_jax.weights.torch_layout import from_torch, to_torch
from tests.helpers import oracle
from tests.helpers.configs import small_config


@pytest.fixture
def parameters():
    config = small_config(model__depth=2, model__decoder__noise_output=False)
    config.model.projector.update(layers=2, hidden=24, outputs=10, batch_norm=False)
    return nnx.to_pure_dict(nnx.state(CAN(config, heads(config), nnx.Rngs(0)), nnx.Param))


def test_names_and_shapes_are_the_public_ones(parameters):
    meta = {
        "patch_size": 4, "width": 24, "depth": 2, "decoder_width": 16, "decoder_depth": 1,
        "channels": 3,
    }  # fmt: skip
    found = {name: array.shape for name, array in to_torch(parameters, 4).items()}
    assert found == oracle.shapes_of(meta)


def test_there_and_back(parameters):
    back = from_torch(to_torch(parameters, 4), parameters)
    for a, b in zip(jax.tree.leaves(parameters), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)


def test_missing_and_misshapen_arrays_are_named(parameters):
    arrays = to_torch(parameters, 4)
    with pytest.raises(UserError, match=r"no blocks\.1\.attn\.qkv\.bias"):
        from_torch({k: v for k, v in arrays.items() if k != "blocks.1.attn.qkv.bias"}, parameters)
    with pytest.raises(UserError, match=r"norm\.weight has shape \(23,\)"):
        from_torch(arrays | {"norm.weight": np.zeros(23)}, parameters)
