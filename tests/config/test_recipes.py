"""Every shipped recipe is valid, and is what its name says."""

import importlib.util
import re
from pathlib import Path

import pytest

from can_jax.config.baselines import METHODS
from can_jax.config.resolve import resolve
from can_jax.train.flops import train_flops_per_image
from can_jax.train.network import heads
from can_jax.train.run_length import make_run_length
from can_jax.train.step import make_step
from can_jax.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
PAGE = (CONFIGS.parent / "docs/runs.md").read_text()
IMAGENET = 1_281_167  # images
# The paper's results, fine-tuned and linear: after 800 epochs of ImageNet-1k (Table 3), and after
# epochs of its size on JFT-300M (Table 2).
VIT_L = {84.7, 76.2, 83.4, 73.9, 83.7, 71.4, 84.9, 73.5}
JFT = {72.8, 74.3, 75.3, 75.4, 72.6, 73.1, 73.4, 50.5, 64.1, 86.1, 85.5, 85.4, 85.9}
QUOTED = {
    "vit_b": {83.4, 74.0},
    "vit_l": VIT_L,
    "mae_vit_l": VIT_L,
    "simclr_vit_l": VIT_L,
    "jft_vit_l": JFT,
    "vit_h": set(),
}


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
    [("vit_b", 170), ("vit_l", 432), ("jft_vit_l", 432), ("mae_vit_l", 124), ("simclr_vit_l", 739)],
)
def test_cost_is_the_one_stated(name, gigaflops):
    config = recipe(name)
    assert round(train_flops_per_image(config) / 1e9) == gigaflops
    assert f"{gigaflops} GFLOP" in (CONFIGS / f"{name}.py").read_text()
    row = next(r for r in PAGE.splitlines() if re.match(rf"\| `{name}[:`]", r))
    assert f"| {gigaflops} GFLOP |" in row


@pytest.mark.parametrize("name", QUOTED)
def test_recipe_quotes_the_row_of_its_own_run(name):
    text = (CONFIGS / f"{name}.py").read_text().split('"""')[1]
    result = text.split("Result:")[1]
    assert set(map(float, re.findall(r"\d\d\.\d", result))) == QUOTED[name]
    if name != "jft_vit_l":  # 800 epochs of ImageNet-1k
        assert recipe(name).total_epochs == 800
    row = next(r for r in PAGE.splitlines() if re.match(rf"\| `{name}[:`]", r))
    assert set(map(float, re.findall(r"\d\d\.\d", row))) <= QUOTED[name]


@pytest.mark.parametrize("epochs", [5000, 3000, 800])
def test_the_long_run_is_counted_in_examples(epochs):
    config = recipe("jft_vit_l", *([] if epochs == 5000 else [str(epochs)]))
    assert config.total_examples == epochs * IMAGENET
    for size_of_data in (IMAGENET, 300_000_000):
        durations = make_run_length(config, size_of_data)
        assert durations.total == round(epochs * IMAGENET / config.batch_size)
        assert durations.warmup == pytest.approx(durations.total / 20, abs=1)
    assert config.data.streaming and config.batch_size == 4096 and config.noise.sigma_max == 0.05
    assert config.mesh == recipe("vit_l").mesh and config.model == recipe("vit_l").model


@pytest.mark.parametrize("epochs", ["0", "-800", "800.5", "eight", ""])
def test_the_long_run_needs_a_number_of_epochs(epochs):
    with pytest.raises(UserError, match=f"jft_vit_l.py:{epochs}: give a whole number of epochs"):
        recipe("jft_vit_l", epochs)


def test_every_recipe_is_in_the_table():
    rows = " ".join(row for row in PAGE.splitlines() if row.startswith("| `"))
    assert [p.stem for p in CONFIGS.glob("*.py") if not re.search(rf"`{p.stem}[:`]", rows)] == []


def test_every_method_is_a_valid_recipe():
    for name in METHODS:
        assert recipe("cifar10_methods", name).total_epochs == 3


def test_baselines_build_only_what_they_need():
    mae = recipe("mae_vit_l")
    assert set(heads(mae)) == {"decoder"}
    assert not mae.model.decoder.zero_output  # MAE's output layer starts with Xavier's weights.
    simclr = recipe("simclr_vit_l")
    assert set(heads(simclr)) == {"projector"}
    assert simclr.model.projector.final_norm  # as in google-research/simclr
    assert simclr.objective.contrastive.directions == "sum"
    assert list(heads(recipe("vit_h"))) == ["projector", "noise_level", "decoder"]


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
