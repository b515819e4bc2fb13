"""Every shipped recipe is valid, and is what its name says."""

import importlib.util
from pathlib import Path

import pytest

from can_jax.config import resolve
from can_jax.forward import heads
from can_jax.observe.flops import train_flops_per_image
from can_jax.step import make_step

CONFIGS = Path(__file__).parents[1] / "configs"


def recipe(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*arguments)
    config.data.path = config.data.path or "/data"
    return resolve(config)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_recipe_describes_a_network(path):
    config = recipe(path.stem)
    assert make_step(config, lambda _: 0.0).network is not None
    assert config.seed == 0


@pytest.mark.parametrize(
    ("name", "gigaflops"),
    [("vit_b", 169), ("vit_l", 431), ("mae_vit_l", 125), ("simclr_vit_l", 738)],
)
def test_cost_is_the_one_stated(name, gigaflops):
    config = recipe(name)
    found = train_flops_per_image(config, heads(config)) / 1e9
    assert found == pytest.approx(gigaflops, rel=0.01)
    assert f"{gigaflops} GFLOP" in (CONFIGS / f"{name}.py").read_text()


def test_baselines_build_only_what_they_need():
    assert heads(recipe("mae_vit_l")) == {"prediction"}
    assert heads(recipe("simclr_vit_l")) == {"projection"}
    assert heads(recipe("vit_h")) == {"projection", "prediction", "noise_level"}


def test_the_four_noise_cells():
    cells = {name: recipe("noise_ablation", name) for name in ("none", "noise", "loss", "full")}
    seen = {
        name: (
            config.noise.sigma_max > 0,
            config.objective.denoising.weight > 0,
            "noise_level" in heads(config),
        )
        for name, config in cells.items()
    }
    assert seen == {
        "none": (False, False, False),
        "noise": (True, False, False),
        "loss": (True, True, False),
        "full": (True, True, True),
    }
