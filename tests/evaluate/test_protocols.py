"""Every protocol from its recipe, on a small data set, on eight devices."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath

from can_jax.config.resolve import load_recipe
from can_jax.data.evaluation.pairs import open_own
from can_jax.data.sources.base import ArraySource
from can_jax.data.sources.labels import Classes
from can_jax.data.sources.registry import open_source
from can_jax.distributed.mesh import make_mesh
from can_jax.encoders.pretrained import open_encoder
from can_jax.evaluate.config import default_evaluation, resolve_evaluation
from can_jax.evaluate.measure import evaluate, measure
from can_jax.evaluate.protocols import health, linear
from can_jax.evaluate.protocols.finetune import classifier_config, run_config
from can_jax.evaluate.reports.comparison import comparison
from can_jax.evaluate.reports.results import read_results
from can_jax.evaluate.split_features import Split, SplitFeatureExtractor
from can_jax.evaluate.task import EvalContext, EvalResults, held_out
from can_jax.features.linear import Setting, train_heads
from can_jax.monitoring.glossary import METRICS
from can_jax.train.health_probe import HealthProbe
from can_jax.train.step import abstract_state, initialize, make_step
from can_jax.utils.errors import UserError
from can_jax.weights.torch_layout import to_torch
from tests.evaluate import samples
from tests.helpers.configs import small_config
from tests.helpers.runs import ROOT, main_in_process
from tests.train.states import random_state
from tests.weights.vits import vit

TRAIN, VAL = 51, 15  # images of the small ImageNet: neither divides by eight


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A run directory, and the small ImageNet as arrays."""
    root = tmp_path_factory.mktemp("eval")
    return samples.run_directory(root), samples.arrays(root / "arrays")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The small ImageNet in its own layout."""
    return samples.imagenet(tmp_path_factory.mktemp("data") / "imagenet")


def recipe(name, data, **changes):
    """A shipped recipe on the small ImageNet, made small."""
    config = load_recipe(str(ROOT / "configs/eval/knn.py"), name)
    config.batch_size = 16
    config.data.update(source=samples.source_of(data), path=str(data), test_split="val")
    config.linear.update(epochs=30, learning_rates=(0.1, 1.0), weight_decays=(0.0, 1e-4))
    config.fewshot.update(shots=(1, 5), draws=3)
    config.health.update(examples=40, k=3)
    config.baselines = "off"
    config.classify.update(total_epochs=4.0, warmup_epochs=1.0, test_every_epochs=2.0)
    return resolve_evaluation(samples.changed(config, **changes))


EXPECTED = {
    "knn": {"knn/top1"},
    "linear": {"linear/top1"},
    "fewshot": {"fewshot/data/5shot", "fewshot/data/5shot_std"},
    "health": {"health/effective_rank", "health/alignment", "health/uniformity", "knn/top1"},
    "robustness": {"clean/top1", "clean/ece", "corrupted/top1"},
    "linear_imagenet": {"linear/top1", "linear/ece"},
    "finetune_imagenet_l": {"finetune/top1", "finetune/nll"},
    "finetune": {"finetune/top1"},
}


@pytest.fixture(scope="module")
def evaluated(places, imagenet, tmp_path_factory):
    """Return what a recipe finds and where it wrote it, run once for all tests."""
    corrupted = {"robustness__corruptions": "fog,pixelate", "robustness__severities": (1, 5)}

    @functools.cache
    def run_once(name, untrained, plain):
        (run, data), workdir = places, tmp_path_factory.mktemp(name)
        if name == "knn" and not untrained:
            data = imagenet
        config = recipe(name, data, **corrupted | (samples.PLAIN if plain else {}))
        return evaluate(config, str(run), epath.Path(workdir), untrained), workdir

    # The cache tells defaults from the same values when they are given.
    return lambda name, untrained=False, plain=False: run_once(name, untrained, plain)


@pytest.mark.parametrize(
    ("untrained", "name", "plain"),
    [
        *[(False, name, False) for name in ("knn", "linear", "fewshot", "health", "robustness")],
        (False, "finetune", True),  # without what `test_classify` does to images
        pytest.param(False, "finetune", False, marks=pytest.mark.slow),
        pytest.param(False, "finetune_imagenet_l", False, marks=pytest.mark.slow),
        pytest.param(False, "linear_imagenet", False, marks=pytest.mark.slow),
        (True, "knn", False),
        pytest.param(True, "finetune", True, marks=pytest.mark.slow),
    ],
)
def test_recipe_from_end_to_end(evaluated, name, untrained, plain):
    results, workdir = evaluated(name, untrained, plain)
    assert results == samples.results_of(workdir)
    assert results["metrics"].keys() >= EXPECTED[name]
    assert all(np.isfinite(value) for value in results["metrics"].values())
    counted = results["examples"]
    prefix = "data/" if name == "fewshot" else ""
    assert (counted[f"{prefix}train"], counted[f"{prefix}test"]) == (TRAIN, VAL)
    assert results["checkpoint"]["step"] == (0 if untrained else 3)
    assert len(results["checkpoint"]["sha256"]) == 64
    page = (workdir / "report.html").read_text()
    addresses = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)  # names, which no browser loads
    assert page.startswith("<!doctype html>") and not re.search("https?://", addresses)
    assert all(key in page for key in results["metrics"])
    if name in ("knn", "linear", "health"):
        assert page.count("<title>") > VAL and 'alt="nearest neighbors"' in page


class WithoutEncoder(EvalContext):
    """A context whose features are the outputs of a split."""

    def __init__(self, config):
        self.config = config

    def select(self, split, kind=None):
        return split.outputs


def test_reported_setting_is_that_of_the_tested_head(monkeypatch):
    """Two accuracies that round to the same value belong to different settings."""
    config = default_evaluation()
    config.linear.update(
        learning_rates=(0.1, 1.0), weight_decays=(0.0,), features=("class",), epochs=1
    )
    labels, outputs = np.arange(20) % 2, np.random.default_rng(0).normal(size=(20, 3))
    source = ArraySource(np.zeros((20, 4, 4, 3), np.uint8), labels.astype(np.int32))
    split = Split("train", outputs, labels, np.arange(20), source, 0, Classes(np.arange(2)), "")
    context = WithoutEncoder(config)
    monkeypatch.setattr(linear, "both", lambda _: (split, split, EvalResults()))
    accuracies, trained = iter((50.001, 50.004)), []
    monkeypatch.setattr(linear, "accuracy", lambda *_: next(accuracies))
    monkeypatch.setattr(
        linear, "train_heads", lambda *a, **k: trained.append(a[3]) or train_heads(*a, **k)
    )
    chosen = linear.linear(context).chosen
    assert chosen == {"features": "class", "learning_rate": 1.0, "weight_decay": 0.0}
    assert trained[-1] == [Setting(1.0, 0.0)]


def test_every_example_counts_once_on_one_device_and_on_eight(places):
    run, data = places
    config, found = recipe("knn", data), []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh(config.mesh, devices)
        subject = open_encoder(str(run), False, config, mesh)
        split = SplitFeatureExtractor(subject, mesh, 16)(
            open_own(subject.config.data, "train", None)
        )
        assert len(split) == TRAIN and len(set(split.indices.tolist())) == TRAIN
        assert split.skipped == 0
        found.append(split)
    np.testing.assert_allclose(found[0].outputs, found[1].outputs, atol=1e-5)
    np.testing.assert_array_equal(found[0].labels, found[1].labels)
    assert found[0].fingerprint == found[1].fingerprint


def test_what_cannot_be_decoded_is_counted_apart(places, imagenet, tmp_path):
    shutil.copytree(imagenet, tmp_path / "imagenet")
    broken = sorted((tmp_path / "imagenet/val").rglob("*.JPEG"))[4]
    broken.write_bytes(broken.read_bytes()[:40])
    config, out = recipe("knn", tmp_path / "imagenet"), epath.Path(tmp_path / "out")
    findings, _ = measure(config, str(places[0]), out, pictures=False)
    assert findings.examples == {"train": TRAIN, "test": VAL - 1, "test_skipped": 1}


def test_health_looks_at_examples_spread_over_the_classes(places, tmp_path):
    """The test split is sorted by class, five images each; three are looked at."""
    run, data = places
    config, out = recipe("health", data, health__examples=3), epath.Path(tmp_path / "out")
    config.batch_size = 15  # which the eight devices do not divide
    findings, _ = measure(config, str(run), out, pictures=False)
    assert findings.examples["health"] == 3 and findings.examples["test"] == VAL
    # Of three classes there is no pair of one class.
    assert "health/tolerance" not in findings.metrics
    assert all(np.isfinite(value) for value in findings.metrics.values())
    assert any("health/tolerance is omitted" in line for line in findings.warnings)
    few = samples.arrays(tmp_path / "few", train=2, val=1)
    findings, _ = measure(recipe("health", few), str(run), out, pictures=False)
    assert findings.examples["test"] == 3 and "health/uniformity" in findings.metrics
    with np.load(few / "val.npz") as content:
        one = {name: content[name][:1] for name in ("images", "labels")}
    np.savez(few / "val.npz", **one, label_names=samples.CLASSES)
    with pytest.raises(
        UserError, match="health compares pairs of images, but the split 'val' has 1"
    ):
        measure(recipe("health", few), str(run), out, pictures=False)


def test_table_of_many_classes_holds_the_best_and_the_worst():
    labels = np.repeat(np.arange(0, 12 * 50_000, 50_000), 2)
    right = np.arange(24) < 13
    (rows,) = health.by_class(right, labels, ()).values()
    assert len(rows) == 12
    assert rows[6] == {"class": "300000", "examples": 2, "kNN top-1 (%)": 50.0}
    ((title, rows),) = health.by_class(right, labels, (), most=4).items()
    assert title.endswith("the best and the worst 2 of 12")
    assert [row["kNN top-1 (%)"] for row in rows] == [100, 100, 0, 0]


@pytest.mark.parametrize(("examples", "share"), [(1, 0.1), (2, 0.9)])
def test_held_out_examples_leave_some_to_learn_from(examples, share):
    with pytest.raises(UserError, match="leaves none to train on"):
        held_out(np.zeros(examples, int), np.zeros((examples, 2)), share, 0)
    most, few = held_out(np.zeros(examples + 1, int), np.zeros((examples + 1, 2)), 0.1, 0)
    assert len(most) == examples and len(few) == 1


def test_normalization_given_for_a_run_is_used_and_its_heads_are_compared(places):
    run, data = places
    config = recipe("knn", data)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with config.ignore_type():
        config.model.mean = (0.5, 0.4, 0.6)
    subject = open_encoder(str(run), False, config, mesh)
    assert subject.config.augment.mean == (0.5, 0.4, 0.6) and subject.identity["mean"][1] == 0.4
    assert subject.config.augment.std == (0.229, 0.224, 0.225)
    config.model.heads = 6
    with pytest.raises(UserError, match="heads=6: the run has 3 heads"):
        open_encoder(str(run), False, config, mesh)


def test_untrained_encoder_is_the_one_that_a_run_starts_with(tmp_path):
    """To the last bit."""
    run = str(samples.run_directory(tmp_path, initialize))
    config = resolve_evaluation(samples.evaluation("knn"))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    saved, fresh = (open_encoder(run, untrained, config, mesh) for untrained in (False, True))
    assert (saved.identity["step"], fresh.identity["step"]) == (3, 0)
    assert saved.identity["sha256"] == fresh.identity["sha256"]


def test_features_are_the_same_from_a_file_of_weights(places, tmp_path):
    run, data = places
    config = recipe("knn", data)
    mesh = make_mesh(config.mesh)
    subject = open_encoder(str(run), False, config, mesh)
    arrays = to_torch(jax.device_get(subject.parameters), 4)
    arrays["pos_embed"] = vit(class_row=False)["pos_embed"]
    np.savez(tmp_path / "encoder.npz", **arrays)
    config.data.image_size = (16, 16)
    config.model.update(heads=3, dtype="float32")
    other = open_encoder(str(tmp_path / "encoder.npz"), False, config, mesh)
    assert other.identity["model"] == subject.identity["model"]
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    kinds = [
        np.asarray(s.features(s.parameters, jax.numpy.asarray(images))) for s in (subject, other)
    ]
    np.testing.assert_allclose(*kinds, atol=1e-5)
    for kind, width in (("patches", 24), ("class", 24), ("all", 24), ("both", 48)):
        assert subject.select(kinds[0], kind).shape == (8, width)
    tokens = np.asarray(subject.tokens(subject.parameters, jax.numpy.asarray(images)))
    np.testing.assert_allclose(subject.select(kinds[0], "all"), tokens.mean(1), atol=1e-5)
    # At another resolution the positions are made anew.
    large = np.zeros((8, 24, 32, 3), np.uint8)
    assert subject.tokens(subject.parameters, jax.numpy.asarray(large)).shape == (8, 49, 24)


@pytest.fixture(scope="module")
def simclr(tmp_path_factory):
    """A run without reconstruction."""
    weights = {"reconstruction": 0.0, "denoising": 0.0}
    changes = {f"objective__{name}__weight": weight for name, weight in weights.items()}
    return samples.run_directory(
        tmp_path_factory.mktemp("simclr"), model__mask_ratio=0.0, noise__sigma_max=0.0, **changes
    )


def test_fine_tuning_of_a_run_without_reconstruction_is_configured(places, simclr):
    config = recipe("finetune", places[1])
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    subject = open_encoder(str(simclr), False, config, mesh)
    trained = run_config(
        EvalContext(config, subject, mesh, SplitFeatureExtractor(subject, mesh, 16), epath.Path())
    )
    assert (subject.config.model.mask_ratio, trained.model.mask_ratio) == (0, 0.5)
    assert trained.objective.reconstruction.weight == 1
    options = {"positions": "learned", "position_grid": (4, 4)}  # as MAE, from its table on
    assert dict(trained.model.backbone_options) == options
    with subject.config.unlocked():
        subject.config.total_minutes = 5.0
    assert classifier_config(config, subject.config, "run").total_minutes is None


@pytest.mark.slow
def test_run_without_reconstruction_can_be_fine_tuned(places, simclr, tmp_path):
    changes = {"total_epochs": 0.5, "warmup_epochs": 0.0, "test_every_epochs": 1.0}
    changes = {f"classify__{name}": value for name, value in changes.items()}
    config = recipe("finetune", places[1], **samples.PLAIN | changes)
    out = epath.Path(tmp_path / "out")
    findings, _ = measure(config, str(simclr), out, pictures=False)
    assert findings.examples == {"train": TRAIN, "test": VAL}
    assert findings.data.keys() == {"train", "test"}


def test_robustness_takes_a_classifier(places, evaluated, tmp_path):
    _, data = places
    trained, workdir = evaluated("finetune", plain=True)
    config = recipe("robustness", data, robustness__corruptions="none")
    findings, _ = measure(config, str(workdir), epath.Path(tmp_path / "out"))
    assert findings.metrics["clean/top1"] == trained["metrics"]["finetune/top1"]
    with pytest.raises(
        UserError, match="is a trained classifier, which only the protocol robustness"
    ):
        evaluate(recipe("knn", data), str(workdir), epath.Path(tmp_path / "knn"))
    with pytest.raises(UserError, match="--untrained applies to encoders"):
        evaluate(config, str(workdir), epath.Path(tmp_path / "untrained"), untrained=True)


def test_held_out_examples_do_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(40, 8)).astype(np.float32), rng.integers(0, 3, 40)
    order = rng.permutation(40)
    for seed in (0, 1):
        _, few = held_out(labels, outputs, 0.2, seed)
        _, others = held_out(labels[order], outputs[order], 0.2, seed)
        assert set(order[others]) == set(few) and len(few) == 8
    assert set(held_out(labels, outputs, 0.2, 0)[1]) != set(few)


def test_knn_stands_beside_its_baselines(places, tmp_path):
    run, data = places
    config = recipe("knn", data, knn__k=(1, 20), knn__temperature=(0.07,), baselines="auto")
    found, _ = measure(config, str(run), epath.Path(tmp_path / "out"), pictures=False)
    metrics = found.metrics
    assert metrics["knn/top1_fixed"] == metrics["knn/top1_k20_t0.07"]
    assert metrics["knn/top1_fixed_pixels"] == 100.0  # a bright channel tells the class
    assert metrics["knn/top1_largest_class"] == pytest.approx(100 / 3)
    low, high = found.intervals["knn/top1_largest_class"]
    assert low < 100 / 3 < high
    config.baselines = "off"
    initial, _ = measure(config, str(run), epath.Path(tmp_path / "out"), True, pictures=False)
    assert metrics["knn/top1_fixed_untrained"] == initial.metrics["knn/top1_fixed"]
    assert "knn/top1_fixed_pixels" not in initial.metrics


def test_health_without_labels_has_geometry_and_pictures(places, tmp_path):
    run, data = places
    with np.load(data / "train.npz") as content:
        np.savez(tmp_path / "train.npz", images=content["images"])
    config = recipe("health", tmp_path, health__examples=20)
    results = evaluate(config, str(run), epath.Path(tmp_path / "out"))
    assert results["metrics"].keys() == {
        f"health/{name}"
        for name in ("effective_rank", "alignment", "uniformity", "dead_dimensions", "width")
    }
    assert results["examples"] == {"health": 20, "images": TRAIN}
    assert any("no labels" in text for text in results["warnings"])
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<img") == 2 and "no label" in page  # neighbors and patch tokens
    assert "principal components" in page and "of the same class" not in page


def test_probe_without_labels_measures_the_spread_of_features(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "train.npz", images=rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8))
    config = small_config(data__source="arrays", data__path=str(tmp_path), probe__bank=16)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    step = make_step(config, lambda _: 0.0)
    probe = HealthProbe(config, step, open_source(config.data, "train"), mesh)
    found = probe(random_state(abstract_state(step, mesh), 0))
    assert 1 < found["probe/effective_rank"] <= 16 and found["probe/uniformity"] < 0
    assert found["probe/dead_dimensions"] == 0 and found.keys() <= METRICS.keys()


def test_disentanglement_is_measured_where_factors_are_known(places, tmp_path):
    run, data = places
    with pytest.raises(UserError, match=r"source='arrays' does not provide the generative factors"):
        evaluate(recipe("disentanglement", data), str(run), epath.Path(tmp_path / "none"))
    counts = {"data__train_examples": 100, "data__test_examples": 60, "data__test_split": "test"}
    config = recipe("disentanglement", data, data__source="shapes", data__path=None, **counts)
    results = evaluate(config, str(run), epath.Path(tmp_path / "shapes"))
    scores = {k: v for k, v in results["metrics"].items() if k.startswith("disentanglement/")}
    within = ("dci", "completeness", "mig", "mean_square_correlation")
    assert set(scores) == {f"disentanglement/{name}" for name in (*within, "informativeness")}
    assert all(0 <= scores[f"disentanglement/{name}"] <= 1 for name in within)
    rows = results["tables"]["Disentanglement by factor"]
    background = [row for row in rows if row["factor"].startswith("background")]
    assert len(background) == 3
    # A random encoder keeps the mean color.
    assert min(row["explained variance"] for row in background) > 0.5


def test_directory_of_a_run_is_refused_for_results(places):
    run, data = places
    with pytest.raises(UserError, match="is a run directory; set --workdir to another"):
        evaluate(recipe("knn", data), str(run), epath.Path(run))


def test_pages_side_by_side(evaluated, tmp_path):
    places = {"one": evaluated("knn")[1], "two": evaluated("knn", untrained=True)[1]}
    runs = {name: read_results(epath.Path(place)) for name, place in places.items()}
    page = comparison(runs)
    for result in runs.values():
        assert f"{result['metrics']['knn/top1']:.2f}" in page
        assert result["checkpoint"]["sha256"][:12] in page
    output = tmp_path / "new" / "page.html"
    listed = ",".join(map(str, places.values()))
    done = main_in_process("can_jax.evaluate.compare", f"--runs={listed}", f"--output={output}")
    assert done.returncode == 0 and "knn/top1" in done.stdout and output.exists()


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser")
def test_page_opens_in_a_browser_without_a_complaint(evaluated, tmp_path):
    shutil.copy(evaluated("health")[1] / "report.html", tmp_path)
    page, script = tmp_path / "report.html", "<script>console.log('images', [...document.images]"
    script += ".every(i => i.complete && i.naturalWidth > 0), document.images.length)</script>"
    text = page.read_text().replace("</body>", f"{script}</body>")  # its policy allows no script
    page.write_text(
        text.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    )
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--screenshot={tmp_path / 'page.png'}", "--virtual-time-budget=2000", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len(lines) == 1 and "images true 2" in lines[0], lines
    assert (tmp_path / "page.png").stat().st_size > 10_000


def command(workdir, run, data, *options):
    return [
        sys.executable, "-m", "can_jax.evaluate", "--config=configs/eval/finetune.py",
        f"--checkpoint={run}", f"--workdir={workdir}", "--config.data.source=folder",
        f"--config.data.path={data}", "--config.data.test_split=val", "--config.batch_size=16",
        "--config.classify.save_every_steps=4", "--config.classify.total_epochs=8", *options,
    ]  # fmt: skip


@pytest.mark.slow
def test_killed_fine_tuning_goes_on_to_the_same_end(places, imagenet, tmp_path):
    """On one device, as a person runs it; 51 and 15 images."""
    run, data = places[0], imagenet
    whole = subprocess.run(
        command(tmp_path / "whole", run, data, "--json"), cwd=ROOT, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        command(tmp_path / "killed", run, data), cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip
    place = tmp_path / "killed/checkpoints"
    while process.poll() is None and not any(path.name.isdigit() for path in place.glob("*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run(
        command(tmp_path / "killed", run, data), cwd=ROOT, capture_output=True, text=True
    )
    assert again.returncode == 0 and "resumed from the checkpoint" in again.stdout, again.stderr
    one, other = (samples.results_of(tmp_path / name) for name in ("whole", "killed"))
    assert json.loads(whole.stdout) == one
    assert one["metrics"] == other["metrics"]
    assert one["examples"] == other["examples"] == {"train": TRAIN, "test": VAL}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint=/no/such/run"], "--checkpoint=/no/such/run does not exist"),
        (["--checkpoint=configs"], "config.json is missing"),
        (["--config.protocol=kmm"], "config.protocol='kmm': give one of knn, linear"),
        (["--config.features=cls"], "give one of patches"),
        (["--config.data.path=/no/such/data"], "/no/such/data"),
        (["--config.data.channels=1"], "data.channels=1: the encoder takes 3"),
        (["--config.held_out=1.5"], "held_out=1.5"),
        (
            ["--config.knn.k=(0,)"],
            "config.knn.k=(0,): give a nonempty tuple of whole numbers at least 1",
        ),
    ],
)
def test_mistake_is_one_line(places, imagenet, tmp_path, options, message):
    run, data = places[0], imagenet
    done = main_in_process(*command(tmp_path, run, data, *options)[2:])
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr
