"""Measurements on a card, in small on a CPU, on a machine that lacks most packages."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import can_jax

ROOT = Path(__file__).parents[2]
# What a bare JAX machine has.
PRESENT = {
    "jax", "flax", "optax", "orbax-checkpoint", "etils", "absl-py", "rich", "jaxtyping", "numpy",
    "ml-collections",
}  # fmt: skip
HIDE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
"""
EPOCHS = "--epochs=8"
SMALL = [
    f"--config.{key}={value}"
    for key, value in {
        "model.width": 24, "model.depth": 1, "model.heads": 3, "model.decoder.width": 16,
        "model.decoder.depth": 1, "model.decoder.heads": 2, "model.projector.hidden": 16,
        "model.projector.outputs": 16, "model.dtype": "float32", "data.image_size": 32,
        "augment.jitter": 0.0, "augment.grayscale": 0.0, "augment.blur": 0.0,
    }.items()
]  # fmt: skip


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed_by(packages: set[str]) -> set[str]:
    """Packages and what they need, as far as it is installed."""
    found, todo = set(), list(packages)
    while todo:
        name = normal(todo.pop())
        if name in found:
            continue
        found.add(name)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        todo += [re.match(r"[\w.-]+", r)[0] for r in requirements if "extra ==" not in r]
    return found


def hidden_modules() -> set[str]:
    """The modules of the packages of requirements.txt that a bare JAX machine lacks."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {normal(re.match(r"[\w.-]+", line)[0]) for line in lines if line[:1].isalpha()}
    lacking = required - needed_by(PRESENT)
    modules = importlib.metadata.packages_distributions().items()
    names = {module for module, owners in modules if lacking & set(map(normal, owners))}
    return names - {"google"}  # a namespace that others share


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> dict[str, str]:
    """The environment of processes in which these modules cannot be imported."""
    hidden = hidden_modules() | {"filelock"}
    assert {"PIL", "tensorflow", "clu", "google_crc32c", "jinja2", "matplotlib"} <= hidden
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(HIDE.format(names=sorted(hidden)))
    return os.environ | {"PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}


def card(environment, out, part, *options):
    script = str(ROOT / "benchmarks" / "card.py")
    command = [sys.executable, script, f"--part={part}", f"--out={out}", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=out)
    path = out / f"card-{part}.json"
    return done, json.loads(path.read_text()) if path.exists() else {}


def test_mistakes_end_in_one_line(bare, tmp_path):
    done, found = card(bare, tmp_path, "input")
    assert done.returncode == 1 and not done.stdout
    assert "--part=input needs tensorflow and PIL" in done.stderr.splitlines()[-1]
    assert found["runs"][0]["card"] == "cpu" and "commit" in found["runs"][0]["environment"]


@pytest.mark.slow
def test_kernels(bare, tmp_path):
    done, found = card(bare, tmp_path, "kernels", "--small", "--rounds=1")
    assert done.returncode == 0, done.stderr
    for name, implementations in found["results"].items():
        ours = implementations["ours"]
        assert ours["milliseconds"] > 0 and ours["error"] < 0.02, name
    assert "unsupported" in found["results"]["attention, encoder"]["jax.nn, cudnn"]


@pytest.mark.slow
def test_step(bare, tmp_path):
    options = ["--batch=2", "--rounds=1", "--seconds=0.1", "--product=32", "--models=vit_b"]
    variant = "--variant=unrolled: model.scan=False model.remat=full"
    done, found = card(bare, tmp_path, "step", *options, variant, "--no-peers", *SMALL)
    assert done.returncode == 0, done.stderr
    (model,) = found["results"].values()
    assert model["steps"].keys() == {"recipe", "unrolled"}
    for step in model["steps"].values():
        assert step["images_per_second"] > 0 and step["mfu"] > 0
    done, _ = card(bare, tmp_path, "step", "--models=vit_x")
    assert done.returncode == 1 and "--models=vit_x" in done.stderr


def cifar(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 20)):
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        np.savez(folder / f"{split}.npz", images=images, labels=np.arange(count) % 2)


@pytest.mark.slow
def test_study_resumes_and_ends_as_without_a_stop(bare, tmp_path):
    cifar(tmp_path)
    options = [
        f"--data={tmp_path}", "--seeds=2", "--probe_epochs=1", "--cells=can",
        "--config.batch_size=16", *SMALL,
    ]  # fmt: skip
    whole = tmp_path / "whole"
    whole.mkdir()
    done, found = card(bare, whole, "study", EPOCHS, *options)
    assert done.returncode == 0, done.stderr
    cell = found["results"]["can"]
    assert [line["epoch"] for line in cell["curve"]] == [*range(9)]
    assert len(cell["knn"]) == 2 and cell["images"] == str(tmp_path)
    one, two = (line["loss/total"] for line in cell["curve"][1]["metrics"])
    assert one != two
    weights = sorted(whole.glob("*.npz"))
    assert [file.name for file in weights] == ["can-encoder-0.npz", "can-encoder-1.npz"]
    settings = cell["config"]["augment"]
    encoder = can_jax.load(weights[1], heads=3, mean=settings["mean"], std=settings["std"])
    assert (encoder.width, encoder.patch_size) == (24, 4)

    stopped = tmp_path / "stopped"
    stopped.mkdir()
    script = str(ROOT / "benchmarks" / "card.py")
    command = [sys.executable, script, "--part=study", f"--out={stopped}", EPOCHS, *options]
    process = subprocess.Popen(command, env=bare, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "epoch 1/8" in line:
            process.terminate()
    assert process.wait() == 0
    states = sorted(file.name for file in stopped.glob("*.npz"))
    assert states == ["can-run-0.npz", "can-run-1.npz"]
    done, found = card(bare, stopped, "study", EPOCHS, *options)
    assert "can resumes after epoch" in done.stdout
    assert found["results"]["can"]["knn"] == cell["knn"]
    last = [cells["curve"][-1]["metrics"] for cells in (found["results"]["can"], cell)]
    assert last[0] == last[1]
    done, _ = card(bare, stopped, "study", EPOCHS, *options)
    assert "can is finished" in done.stdout


@pytest.mark.slow
def test_study_tunes_the_learning_rate_of_each_method(bare, tmp_path):
    cifar(tmp_path)
    done, found = card(
        bare, tmp_path, "study", f"--data={tmp_path}", "--cells=can,simclr,simclr:1", "--epochs=2",
        "--seeds=1", "--tuning_epochs=1", "--learning_rates=1e-5,0.1", "--config.batch_size=16",
        *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = found["results"]
    for method in ("can", "simclr"):
        tuned = results[f"{method}, learning rates"]
        assert tuned["learning_rates"] == [1e-5, 0.1] and tuned["seeds"] == [0, 0]
        best = tuned["learning_rates"][tuned["knn"].index(max(tuned["knn"]))]
        assert results[method]["learning_rates"] == [best]
    assert [len(results[name]["curve"]) - 1 for name in ("simclr", "simclr:1")] == [2, 1]
    done, _ = card(
        bare, tmp_path, "study", f"--data={tmp_path}", "--cells=can", "--learning_rates=0,0.1",
        "--config.batch_size=16", *SMALL,
    )  # fmt: skip
    assert done.returncode == 1 and "optimizer.learning_rate=0" in done.stderr
