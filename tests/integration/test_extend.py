"""Every file of docs/extend.md trains: its recipe is run as it stands there, on a tiny model."""

import csv
import json
import re

import jax
import numpy as np
import pytest

from can_jax.objectives import OBJECTIVES
from can_jax.utils.registry import Registry
from tests.data.samples import encode
from tests.evaluate import samples
from tests.helpers.runs import (
    ROOT,
    command,
    counting_steps,
    main_in_process,
    metrics,
    only_devices,
    run_in_process,
    state_at,
)

PAGE = (ROOT / "docs/extend.md").read_text()
TINY = (
    "batch_size=16", "total_epochs=None", "total_steps=2", "log_every_steps=1",
    "data.image_size=16", "model.width=24",
    "model.depth=1", "model.heads=3", "model.patch_size=4", "model.dtype=float32",
    "model.scan=False", "model.decoder.width=16", "model.decoder.depth=1", "model.decoder.heads=2",
    "model.projector.hidden=32", "model.projector.outputs=16", "augment.jitter=0.0",
    "augment.grayscale=0.0", "augment.blur=0.0", "optimizer.warmup_share=None",
    "optimizer.warmup_steps=0", "figures.every_steps=0", "checkpoint.every_steps=2",
)  # fmt: skip
SHAPES = ("data.source=shapes", "data.path=None", "data.shapes_count=32", "probe.every_steps=0")
# Compile fast; the first is also one program for all tests that have it, which JAX's cache keeps.
MAE_ALONE = (
    "objective.contrastive.weight=0.0", "objective.denoising.weight=0.0", "noise.sigma_max=0.0",
    "augment.views=1",
)  # fmt: skip
NO_DECODER = (
    "objective.reconstruction.weight=0.0", "objective.denoising.weight=0.0", "noise.sigma_max=0.0",
)  # fmt: skip


def example(heading):
    """The Python file below a heading of the page."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[0]


@pytest.fixture
def own(tmp_path):
    """A function that writes an example to a file. What it registers is forgotten afterwards."""
    before = {registry: registry.names() for registry in Registry.all}

    def write(heading, *more):
        path = tmp_path / "mine.py"
        path.write_text("\n".join([example(heading), *more]))
        return path

    yield write
    for registry, names in before.items():
        for name in set(registry.names()) - set(names):
            registry.remove(name)


def test_objective_trains_with_its_head_and_its_run_is_read_with_its_module(own, tmp_path):
    """Nothing in a run directory names code to execute, so a command is told of the module."""
    path, workdir = own("An objective"), tmp_path / "run"
    options = (*TINY, *SHAPES, *NO_DECODER, "objective.sigmoid.outputs=8")
    options += ("accumulation.microbatches=2",)
    done = run_in_process(path, workdir, *options)
    assert done.returncode == 0, done.stderr
    assert "sigmoid_head/project" in done.stdout and "projector/" not in done.stdout
    first, second = metrics(workdir)
    assert first["sigmoid/temperature"] == pytest.approx(10.0)
    assert second["sigmoid/temperature"] != first["sigmoid/temperature"]  # learned
    assert first["loss/sigmoid"] > 0 and "loss/contrastive" not in first
    config = json.loads((workdir / "config.json").read_text())
    assert config["objective"]["sigmoid"] == {"weight": 0.03, "outputs": 8, "margin": 0.0}
    done = run_in_process(path, workdir, *options, "objective.sigmoid.margin=2.0")
    assert "error: config.objective.sigmoid.margin=2.0: give a number at least -1" in done.stderr

    OBJECTIVES.remove("sigmoid")
    evaluation = ["--config=knn", f"--checkpoint={workdir}", f"--workdir={tmp_path}/knn"]
    done = main_in_process("can_jax.evaluate", *evaluation)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "config.objective.sigmoid is not a key of this version" in done.stderr
    assert "import that module with --modules=FILE" in done.stderr
    done = main_in_process("can_jax.evaluate", *evaluation, f"--modules={path}")
    assert done.returncode == 0, done.stderr


def test_optimizer_and_schedule_of_ones_own(own, tmp_path):
    path = own("An optimizer and a schedule")
    options = (*TINY, *SHAPES, *MAE_ALONE, "total_steps=4")
    done = run_in_process(path, tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    rates = [line["learning_rate"] for line in metrics(tmp_path / "run")]
    peak = 2e-5 * 16 / 256
    np.testing.assert_allclose(rates, [peak, peak, peak, peak / 2], rtol=1e-5)


def test_backbone_trains_is_probed_and_loaded(own, tmp_path):
    import can_jax

    path = own("A backbone")
    sizes = "model.backbone_options=(('width',16),('depth',2))"
    done = run_in_process(
        path, tmp_path / "run", *TINY, *SHAPES, *MAE_ALONE, sizes, "probe.every_steps=2"
    )
    assert done.returncode == 0, done.stderr
    assert "encoder/layers" in done.stdout and "probe/knn" in metrics(tmp_path / "run")[-1]
    encoder = can_jax.load(tmp_path / "run")
    assert encoder(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 16)
    output = f"--output={tmp_path}/export"
    done = main_in_process(
        "can_jax.export", f"--checkpoint={tmp_path}/run", output, "--format=timm"
    )
    assert "config.model.backbone='mean_mixer': only 'vit' supports an export" in done.stderr


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


def test_data_source(own, tmp_path):
    rng, data = np.random.default_rng(0), tmp_path / "photos"
    data.mkdir()
    for split, count in (("train", 12), ("test", 6)):
        rows = [(f"{split}{i}.png", ("cat", "dog", "owl")[i % 3]) for i in range(count)]
        for i, (name, _) in enumerate(rows):
            (data / name).write_bytes(encode(samples.picture(i, rng)))
        with (data / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    recipe, workdir = own("A data source"), tmp_path / "run"
    options = [*MAE_ALONE, f"data.path={data}"]
    options += ["probe.every_steps=2", "probe.bank=12", "probe.queries=6"]
    done = run_in_process(recipe, workdir, *TINY, *options)
    assert done.returncode == 0, done.stderr
    lines = metrics(workdir)
    assert [line["step"] for line in lines if "loss/total" in line] == [1, 2]
    assert 0 <= lines[-1]["probe/knn"] <= 100 and "6 of" not in done.stderr

    # A resume compares the data.
    text = (data / "train.csv").read_text()
    (data / "train.csv").write_text(text.replace("train0.png,cat", "train0.png,dog"))
    again = run_in_process(recipe, workdir, *TINY, *options, "total_steps=4")
    assert again.returncode == 1 and "config.data differs from the data of" in again.stderr
    assert "it has other labels" in again.stderr

    missing = run_in_process(recipe, tmp_path / "other", *TINY, "data.path=None")
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1
    assert "config.data.path is not set: give the folder of the CSV files" in missing.stderr


def test_evaluation_protocol(own, tmp_path):
    recipe = own("An evaluation protocol")
    run = samples.run_directory(tmp_path)
    data = samples.arrays(tmp_path / "arrays")
    options = [f"--config={recipe}", f"--checkpoint={run}", f"--workdir={tmp_path / 'out'}"]
    options += ["--config.data.source=arrays", f"--config.data.path={data}"]
    options += ["--config.data.test_split=val", "--config.batch_size=16", "--json"]
    done = main_in_process("can_jax.evaluate", *options)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["metrics"].keys() == {"class_means/top1"}
    assert results["metrics"]["class_means/top1"] > 80  # the classes differ in color
    assert results["protocol"]["class_means"] == {"distance": "cosine"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Class means" in page and page.count("<title>") > 15  # the map of the test images

    wrong = main_in_process("can_jax.evaluate", *options, "--config.class_means.distance=cos")
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1
    assert "config.class_means.distance='cos': give one of cosine, euclidean" in wrong.stderr


def test_callback_and_tracker(own, tmp_path):
    workdir, callback = tmp_path / "run", own("A callback").rename(tmp_path / "callback.py")
    recipe = own("A tracker")
    arguments = command(recipe, workdir, *TINY, *SHAPES, *MAE_ALONE)[3:]
    with only_devices(1):
        done = main_in_process("can_jax.main", f"--modules={callback}", *arguments)
    assert done.returncode == 0, done.stderr
    (norm,) = [line["parameters/norm"] for line in metrics(workdir) if "parameters/norm" in line]
    squares = [np.sum(np.square(x)) for x in jax.tree.leaves(state_at(workdir, 2)["parameters"])]
    assert norm == pytest.approx(np.sqrt(np.sum(squares)), rel=1e-5)
    rows = list(csv.reader((workdir / "metrics.csv").open()))
    for line in metrics(workdir):
        step = line.pop("step")
        for name, value in line.items():
            if name in ("time", "elapsed_seconds"):
                continue
            assert [str(step), name, str(value)] in rows
    assert {step for step, _, _ in rows} == {"1", "2"}


FINE_TUNING = """
from can_jax.evaluate.config import default_evaluation

def get_config():
    config = default_evaluation()
    config.protocol, config.batch_size = "classify", 16
    config.classify.update(total_epochs=1.0, warmup_epochs=0.0, test_every_epochs=0.0)
    config.classify.update(freeze_encoder=True)
    return config
"""


def test_fine_tuning_has_callback_and_tracker_too(own, tmp_path):
    callback, out = own("A callback").rename(tmp_path / "callback.py"), tmp_path / "out"
    recipe = own("A tracker", FINE_TUNING)
    run = samples.run_directory(tmp_path)
    data = samples.arrays(tmp_path / "arrays")
    options = [f"--modules={callback}", f"--config={recipe}", f"--checkpoint={run}"]
    options += [f"--workdir={out}", "--config.data.source=arrays", f"--config.data.path={data}"]
    options += ["--config.data.test_split=val"]
    with counting_steps():
        done = main_in_process("can_jax.evaluate", *options)
    assert done.returncode == 0, done.stderr
    assert '"parameters/norm"' in (out / "metrics.jsonl").read_text()
    assert "loss/" in (out / "metrics.csv").read_text()
