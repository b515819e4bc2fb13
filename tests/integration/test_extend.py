"""Every file of docs/extend.md trains: its recipe is run as it stands there, on a tiny model."""

import json
import re

import numpy as np
import pytest

from can_jax.objectives import OBJECTIVES
from can_jax.utils.registry import Registry
from tests.helpers.runs import ROOT, main_in_process, metrics, run_in_process

PAGE = (ROOT / "docs/extend.md").read_text()
TINY = (
    "batch_size=16", "total_epochs=None", "total_steps=2", "log_every_steps=1",
    "data.source=shapes", "data.image_size=16", "data.shapes_count=32", "data.path=None",
    "model.width=24",
    "model.depth=1", "model.heads=3", "model.patch_size=4", "model.dtype=float32",
    "model.scan=False", "model.decoder.width=16", "model.decoder.depth=1", "model.decoder.heads=2",
    "model.projector.hidden=32", "model.projector.outputs=16", "augment.jitter=0.0",
    "augment.greyscale=0.0", "augment.blur=0.0", "optimizer.warmup_share=None",
    "optimizer.warmup_steps=0", "probe.every_steps=0", "figures.every_steps=0",
)  # fmt: skip
MAE_ALONE = ("objective.contrastive.weight=0.0", "objective.denoising.weight=0.0")  # compiles fast


def example(heading):
    """The Python file below a heading of the page."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return code


@pytest.fixture
def own(tmp_path):
    """A function that writes an example to a file. What it registers is forgotten afterwards."""
    before = {registry: registry.names() for registry in Registry.all}

    def write(heading, name="mine.py"):
        path = tmp_path / name
        path.write_text(example(heading))
        return path

    yield write
    for registry, names in before.items():
        for name in set(registry.names()) - set(names):
            registry.remove(name)


def test_objective_trains_with_its_head_and_its_run_is_read_with_its_module(own, tmp_path):
    """Nothing in a run directory names code to execute, so a command is told of the module."""
    path, workdir = own("An objective"), tmp_path / "run"
    options = (*TINY, "objective.siglip.outputs=8", "accumulation.microbatches=2")
    done = run_in_process(path, workdir, *options)
    assert done.returncode == 0, done.stderr
    assert "siglip_head/project" in done.stdout and "projector/" not in done.stdout
    first, second = metrics(workdir)
    assert first["siglip/temperature"] == pytest.approx(10.0)
    assert second["siglip/temperature"] != first["siglip/temperature"]  # learned
    assert first["loss/siglip"] > 0 and "loss/contrastive" not in first
    config = json.loads((workdir / "config.json").read_text())
    assert config["objective"]["siglip"] == {"weight": 0.03, "outputs": 8, "margin": 0.0}
    done = run_in_process(path, workdir, *options, "objective.siglip.margin=2.0")
    assert "error: config.objective.siglip.margin=2.0: give a number at least -1" in done.stderr

    OBJECTIVES.remove("siglip")
    evaluation = ["--config=knn", f"--checkpoint={workdir}", f"--workdir={tmp_path}/knn"]
    done = main_in_process("can_jax.evaluate", *evaluation)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "config.objective.siglip is no key of this version" in done.stderr
    assert "import that first, by --modules=FILE" in done.stderr
    done = main_in_process("can_jax.evaluate", *evaluation, f"--modules={path}")
    assert done.returncode == 0, done.stderr


def test_optimizer_and_schedule_of_ones_own(own, tmp_path):
    path = own("An optimizer and a schedule")
    done = run_in_process(
        path, tmp_path / "run", *TINY, "total_steps=4", "optimizer.weight_decay=0.0"
    )
    assert done.returncode == 0, done.stderr
    rates = [line["learning_rate"] for line in metrics(tmp_path / "run")]
    peak = 2e-5 * 16 / 256
    np.testing.assert_allclose(rates, [peak, peak, peak, peak / 2], rtol=1e-5)


def test_backbone_trains_is_probed_and_loaded(own, tmp_path):
    import can_jax

    path = own("A backbone")
    sizes = "model.backbone_options=(('width',16),('depth',2))"
    done = run_in_process(path, tmp_path / "run", *TINY, *MAE_ALONE, sizes, "probe.every_steps=2")
    assert done.returncode == 0, done.stderr
    assert "encoder/layers" in done.stdout and "probe/knn" in metrics(tmp_path / "run")[-1]
    encoder = can_jax.load(tmp_path / "run")
    assert encoder(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 16)
    output, timm = f"--output={tmp_path}/export", "--format=timm"
    done = main_in_process(
        "can_jax.export", f"--checkpoint={tmp_path}/run", output, "--format=timm"
    )
    assert "config.model.backbone='mean_mixer': an export requires 'vit'" in done.stderr


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("missing.py", "--modules=missing.py: there is no such file"),
        ("no_such_module", "--modules=no_such_module: there is no such module"),
        ("broken.py", "broken.py, line 1: division by zero"),
        ("taken.py", "the objective 'contrastive' is already registered by"),
    ],
)
def test_module_that_cannot_be_imported_is_one_line(tmp_path, module, message):
    taken = "from can_jax.objectives import OBJECTIVES\nOBJECTIVES.register('contrastive', None)\n"
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "taken.py").write_text(taken)
    given = str(tmp_path / module) if (tmp_path / module).exists() else module
    done = main_in_process("can_jax.main", f"--modules={given}", "--config=vit_l")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert message in done.stderr
