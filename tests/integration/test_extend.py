"""The files on the page `docs/extend.md` do what it says: each is saved as a recipe and run."""

import csv
import json
import re

import jax
import numpy as np
import pytest

from can_jax.data.sources.registry import SOURCES
from can_jax.evaluate.protocols.registry import PROTOCOLS
from can_jax.monitoring.trackers import TRACKERS
from can_jax.train.callback import CALLBACKS
from tests.data.samples import encode
from tests.evaluate import samples
from tests.helpers.runs import (
    ROOT,
    counting_steps,
    main_in_process,
    metrics,
    run_in_process,
    state_at,
)

PAGE = (ROOT / "docs" / "extend.md").read_text()
TINY = (
    "batch_size=8", "total_steps=2", "log_every_steps=1", "data.image_size=16", "model.width=24",
    "model.depth=1", "model.heads=3", "model.patch_size=4", "model.dtype=float32",
    "model.scan=False", "model.decoder.width=16", "model.decoder.depth=1",
    "model.decoder.heads=2", "model.projector.hidden=32", "model.projector.outputs=16",
    "augment.jitter=0.0", "augment.greyscale=0.0", "augment.blur=0.0", "figures.every_steps=0",
    "checkpoint.every_steps=2",
)  # fmt: skip
SHAPES = ("data.source=shapes", "data.shapes_count=64", "probe.every_steps=0")


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Forget at the end what a test has registered."""
    for registry in (SOURCES, PROTOCOLS, TRACKERS, CALLBACKS):
        for name in ("_values", "_origins"):
            monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


def on_the_page(heading):
    """The first file below a heading."""
    section = re.split(r"^## ", PAGE, flags=re.M)
    (text,) = [part for part in section if part.startswith(f"{heading}\n")]
    return re.search(r"^```python\n(.*?)^```$", text, re.S | re.M)[1]


@pytest.fixture
def saved(tmp_path):
    """Save the file below a heading as a recipe; returns its path."""

    def save(heading, *more):
        path = tmp_path / "my_recipe.py"
        path.write_text("\n".join([on_the_page(heading), *more]))
        return path

    return save


def test_data_source(saved, tmp_path):
    rng, data = np.random.default_rng(0), tmp_path / "photos"
    data.mkdir()
    for split, count in (("train", 12), ("test", 6)):
        rows = [(f"{split}{i}.png", ("cat", "dog", "owl")[i % 3]) for i in range(count)]
        for i, (name, _) in enumerate(rows):
            (data / name).write_bytes(encode(samples.picture(i, rng)))
        with (data / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    recipe, workdir = saved("A data source"), tmp_path / "run"
    options = [f"data.path={data}", "probe.every_steps=2", "probe.bank=12", "probe.queries=6"]
    done = run_in_process(recipe, workdir, *TINY, *options)
    assert done.returncode == 0, done.stderr
    lines = metrics(workdir)
    assert [line["step"] for line in lines if "loss/total" in line] == [1, 2]
    assert 0 <= lines[-1]["probe/knn"] <= 100 and "6 of" not in done.stderr

    # A resume compares the data.
    text = (data / "train.csv").read_text()
    (data / "train.csv").write_text(text.replace("train0.png,cat", "train0.png,dog"))
    again = run_in_process(recipe, workdir, *TINY, *options, "total_steps=4")
    assert again.returncode == 1 and "it has other labels" in again.stderr

    missing = run_in_process(recipe, tmp_path / "other", *TINY, "data.path=None")
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1
    assert "config.data.path is not set: give the folder of the CSV files" in missing.stderr


def test_evaluation_protocol(saved, tmp_path):
    recipe = saved("An evaluation protocol")
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
    assert "Class means" in page and page.count("<circle") >= 15  # the map of the test images

    wrong = main_in_process("can_jax.evaluate", *options, "--config.class_means.distance=cos")
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1
    assert "config.class_means.distance='cos': give one of cosine, euclidean" in wrong.stderr


def test_callback(saved, tmp_path):
    workdir = tmp_path / "run"
    done = run_in_process(saved("A callback"), workdir, *TINY, *SHAPES)
    assert done.returncode == 0, done.stderr
    (norm,) = [line["parameters/norm"] for line in metrics(workdir) if "parameters/norm" in line]
    squares = [np.sum(np.square(x)) for x in jax.tree.leaves(state_at(workdir, 2)["parameters"])]
    assert norm == pytest.approx(np.sqrt(np.sum(squares)), rel=1e-5)


def test_tracker(saved, tmp_path):
    workdir = tmp_path / "run"
    done = run_in_process(saved("A tracker"), workdir, *TINY, *SHAPES)
    assert done.returncode == 0, done.stderr
    rows = list(csv.reader((workdir / "metrics.csv").open()))
    for line in metrics(workdir):
        step = line.pop("step")
        for name, value in line.items():
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


@pytest.mark.parametrize(
    ("heading", "file", "text"),
    [("A callback", "metrics.jsonl", '"parameters/norm"'), ("A tracker", "metrics.csv", "loss/")],
)
def test_fine_tuning_has_it_too(saved, tmp_path, heading, file, text):
    recipe, out = saved(heading, FINE_TUNING), tmp_path / "out"
    run = samples.run_directory(tmp_path)
    data = samples.arrays(tmp_path / "arrays")
    options = [f"--config={recipe}", f"--checkpoint={run}", f"--workdir={out}"]
    options += ["--config.data.source=arrays", f"--config.data.path={data}"]
    options += ["--config.data.test_split=val"]
    with counting_steps():
        done = main_in_process("can_jax.evaluate", *options)
    assert done.returncode == 0, done.stderr
    assert text in (out / file).read_text()
