import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from can_jax.distributed.hardware import matmul_flops, peak_flops
from can_jax.models.backbones import SIZES, Size
from can_jax.models.vit import Blocks
from can_jax.train.flops import train_flops_per_image, transformers
from tests.helpers.configs import small_config


def gigaflops(**changes):
    config = small_config(data__image_size=224, model__patch_size=16, **changes)
    config.model.decoder.update(width=512, depth=8, heads=16)
    config.model.projector.update(hidden=4096, outputs=128)
    size = SIZES[config.model.size]
    config.model.update(width=size.width, depth=size.depth, heads=size.heads)
    return train_flops_per_image(config) / 1e9


def test_known_costs():
    simclr = {
        "model__mask_ratio": 0.0,
        "noise__sigma_max": 0.0,
        "objective__reconstruction__weight": 0.0,
        "objective__denoising__weight": 0.0,
    }
    mae = {
        "augment__views": 1,
        "model__mask_ratio": 0.75,
        "objective__contrastive__weight": 0.0,
    }
    can = gigaflops(model__size="L")
    assert can == pytest.approx(431, rel=0.01)
    assert gigaflops(model__size="B") == pytest.approx(169, rel=0.01)
    assert gigaflops(model__size="L", **mae) == pytest.approx(124, rel=0.01)
    assert gigaflops(model__size="L", **simclr) / can == pytest.approx(1.71, abs=0.02)


def test_register_tokens_count():
    config = small_config(model__backbone_options=(("registers", 4),))
    plain, _ = transformers(small_config())
    registers, _ = transformers(config)
    assert registers == (plain[0], plain[1] + 4)


def test_formula_is_what_the_compiler_counts():
    dtypes = {"dtype": jnp.float32, "residual_dtype": jnp.float32, "param_dtype": jnp.float32}
    options = {"scan": False, "remat": "none", **dtypes}
    blocks = nnx.eval_shape(lambda: Blocks(2, 256, 4, 1024, rngs=nnx.Rngs(0), **options))
    graph, parameters = nnx.split(blocks)
    forward = jax.jit(lambda p, x: nnx.merge(graph, p)(x))
    x = jax.ShapeDtypeStruct((1, 50, 256), jnp.float32)
    counted = forward.lower(parameters, x).cost_analysis()["flops"]
    assert Size(256, 2, 4).flops(50) == pytest.approx(counted, rel=0.07)


def test_peak_of_a_cpu_is_measured():
    assert peak_flops("float32") > 1e8
    assert matmul_flops("float32", size=64, repeats=1) > 0
