import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from can_jax.data.sources.labels import Classes
from can_jax.distributed.mesh import make_mesh
from can_jax.encoders.pretrained import open_encoder
from can_jax.evaluate.config import resolve_evaluation
from can_jax.evaluate.measure import evaluate
from can_jax.evaluate.protocols.corruptions import CORRUPTIONS
from can_jax.evaluate.protocols.robustness import (
    ALEXNET,
    curves,
    logits_of,
    mean_corruption_error,
    robustness,
)
from can_jax.evaluate.protocols.shifts import (
    SHIFT,
    SHIFTS,
    imagenet_c,
    imagenet_labels,
    imagenet_numbering,
    known_numbering,
)
from can_jax.evaluate.reports.comparison import comparison
from can_jax.evaluate.split_features import SplitFeatureExtractor
from can_jax.evaluate.task import EvalContext, EvalResults
from can_jax.export.model import open_model
from can_jax.export.model_card import card_of, results_of
from can_jax.utils.errors import UserError
from tests.data.samples import encode
from tests.evaluate import samples


def test_mce_by_hand():
    # Half of AlexNet's error everywhere, and as much as AlexNet's for fog.
    errors = {name: [ALEXNET[name] / 2] * 5 for name in ALEXNET}
    errors["fog"] = [ALEXNET["fog"] - 10, ALEXNET["fog"] + 10, *[ALEXNET["fog"]] * 3]
    mce, each = mean_corruption_error(errors)
    assert each["fog"] == pytest.approx(100) and each["snow"] == pytest.approx(50)
    assert mce == pytest.approx((14 * 50 + 100) / 15)
    assert set(ALEXNET) == set(CORRUPTIONS)
    # Noise, blur, weather, digital of table 1.
    assert np.mean(list(ALEXNET.values())) == pytest.approx(78.8, abs=0.2)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A run directory, and the small ImageNet as arrays."""
    root = tmp_path_factory.mktemp("robust")
    run = samples.run_directory(root, augment__mean=(0.5,) * 3, augment__std=(0.2,) * 3)
    return run, samples.arrays(root / "arrays")


@pytest.fixture(scope="module")
def opened(places):
    """An evaluation on one device, whose encoder is compiled once for all test sets."""
    config = resolve_evaluation(settings(places, ()))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    subject = open_encoder(str(places[0]), False, config, mesh)
    return EvalContext(
        config, subject, mesh, SplitFeatureExtractor(subject, mesh, 16), epath.Path()
    )


class Unread(SplitFeatureExtractor):
    """A reader that must not read."""

    def __call__(self, *arguments, **options):
        raise AssertionError("a split is read")


def folder(place, labels_of, count=4, names=samples.CLASSES, picture=samples.picture):
    """A test set of its own: class folders, with images of the classes they say they are."""
    rng = np.random.default_rng(1)
    for name in names:
        (place / name).mkdir(parents=True)
        for i in range(count):
            image = encode(picture(labels_of(name), rng))
            (place / name / f"{i}.JPEG").write_bytes(image)
    return place


def settings(places, shifts, **changes):
    changes = {
        "robustness__corruptions": "none", "linear__epochs": 40, "linear__learning_rates": (1.0,),
        "linear__weight_decays": (0.0,), "linear__features": ("patches",),
    } | changes  # fmt: skip
    return samples.evaluation("robustness", places[1], robustness__shifts=shifts, **changes)


def measured(places, opened, shifts, **changes):
    """What the protocol finds, without pages and files."""
    config, findings = resolve_evaluation(settings(places, shifts, **changes)), EvalResults()
    task = dataclasses.replace(opened, config=config)
    pair = task.pair(findings)
    robustness(task, pair.test, lambda: logits_of(task, pair.train, findings), findings)
    return findings


def measure(places, tmp_path, shifts, **changes):
    """What is written of the whole evaluation."""
    config = resolve_evaluation(settings(places, shifts, **changes))
    return evaluate(config, str(places[0]), epath.Path(tmp_path / "out"))


def test_label_maps(places, opened, tmp_path):
    index = {name: i for i, name in enumerate(samples.CLASSES)}
    # As ImageNet-A: fewer classes, named alike.
    fewer = folder(tmp_path / "a", index.get, names=samples.CLASSES[1:])
    # As ImageNet-V2: numbers; 2 comes after 10 as words do.
    numbered = folder(tmp_path / "v2", int, names=("0", "1", "2"))
    # ReaL: the second class's images are also of the third; two have no label at all.
    real = [[0]] * 5 + [[1, 2]] * 5 + [[0]] * 3 + [[], []]
    (tmp_path / "real.json").write_text(json.dumps(real))
    # ObjectNet: the mappings of its archive. Lamps are of two classes, pens of none.
    rng, root = np.random.default_rng(2), tmp_path / "objectnet"
    for name, label in (("lamp", 2), ("pen", 0), ("fish", 0)):
        (root / "images" / name).mkdir(parents=True)
        for i in range(3):
            (root / "images" / name / f"{i}.png").write_bytes(encode(samples.picture(label, rng)))
    (root / "mappings").mkdir()
    tables = {
        "folder_to_objectnet_label": {"lamp": "Lamp", "pen": "Pen", "fish": "Fish"},
        "objectnet_to_imagenet_1k": {"Lamp": "goldfish; shark, great white", "Fish": "tench"},
        "pytorch_to_imagenet_2012_id": {"0": 2, "1": 0, "2": 1},
    }
    for name, table in tables.items():
        (root / "mappings" / f"{name}.json").write_text(json.dumps(table))
    (root / "mappings/imagenet_to_label_2012_v2").write_text(
        "goldfish\nshark, great white\ntench\n"
    )
    val = samples.imagenet(tmp_path / "imagenet", train=0) / "val"
    shifts = (
        {"kind": "classes", "name": "imagenet_a", "path": str(fewer)},
        {"kind": "numbered", "name": "imagenet_v2", "path": str(numbered)},
        {"kind": "real", "path": str(val), "labels": str(tmp_path / "real.json")},
        {"kind": "objectnet", "path": str(root)},
    )
    found = measured(places, opened, shifts)
    metrics, examples = found.metrics, found.examples
    assert metrics["clean/top1"] == 100  # so each number below is one of the maps
    assert metrics["imagenet_a/top1"] == 100 and examples["imagenet_a"] == 8
    assert metrics["imagenet_v2/top1"] == 100 and examples["imagenet_v2"] == 12
    # Of 13 judged, the three that are shown as the third class and labelled as the first are wrong.
    assert (examples["real"], examples["real_judged"]) == (15, 13)
    assert metrics["real/top1"] == pytest.approx(100 * 10 / 13)
    assert (examples["objectnet"], examples["objectnet_judged"]) == (9, 6)
    assert metrics["objectnet/top1"] == 100


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (samples.CLASSES[1:], [0, 1, 2], [-1, 0, 1]),  # a subset of ImageNet
        (("n15075141", "n01440764"), [0, 1, 999], [1, -1, 0]),
        (("10", "2"), [0, 2, 10], [-1, 1, 0]),
        ((), [0, 5, 7], [-1, 0, 1]),
    ],
)
def test_labels_of_imagenet_are_matched_by_name(names, labels, expected):
    numbering = imagenet_numbering(Classes(np.array([5, 7]), names))
    assert numbering(np.array(labels)).tolist() == expected
    assert known_numbering(Classes(np.array([5, 7]), names), "real") is not None


def test_labels_of_imagenet_are_refused_for_classes_of_other_names():
    classes = Classes(np.arange(2), (samples.CLASSES[0], "shark"))
    assert imagenet_numbering(classes) is None
    words = tuple(f"word {i}" for i in range(1000, 0, -1))  # not in the order of folders
    assert imagenet_numbering(Classes(np.arange(1000), words))(np.array([7])) == 7
    assert imagenet_numbering(Classes(np.arange(1000), tuple(sorted(words)))) is None
    reverse = tuple(imagenet_labels())[::-1]  # WordNet ids precede the labels of the source
    assert imagenet_numbering(Classes(np.arange(1000), reverse))(np.array([7])) == 992
    with pytest.raises(UserError, match="real: the training class 'shark' is named neither"):
        known_numbering(classes, "real")
    mixed = Classes(np.arange(3), ("5", samples.CLASSES[0], "shark"))
    with pytest.raises(UserError, match="real: the training class 'shark' is named neither"):
        known_numbering(mixed, "real")
    mixed = Classes(np.arange(2), ("5", samples.CLASSES[0]))
    with pytest.raises(UserError, match="real: some training classes are named by WordNet ids"):
        known_numbering(mixed, "real")


def test_labels_without_a_class_of_the_classifier_give_a_warning(places, opened, tmp_path):
    (tmp_path / "real.json").write_text(json.dumps([[]] * 3))
    val = samples.imagenet(tmp_path / "imagenet", train=0, val=1) / "val"
    shifts = ({"kind": "real", "path": str(val), "labels": str(tmp_path / "real.json")},)
    config, found = resolve_evaluation(settings(places, shifts)), EvalResults()
    task = dataclasses.replace(opened, config=config)

    def logits(split):
        return np.eye(3)[split.labels]

    robustness(task, task.pair(found).test, lambda: logits, found)
    assert (found.examples["real"], found.examples["real_judged"]) == (3, 0)
    assert "real/top1" not in found.metrics
    assert any(line.startswith("real/top1 is omitted") for line in found.warnings)


def test_folder_of_a_shift_that_has_splits_is_refused(places, opened, tmp_path):
    """Its training images would be evaluated, or a split be missing that no setting names."""
    whole = samples.imagenet(tmp_path / "whole", train=1, val=1)
    shifts = ({"kind": "classes", "name": "other", "path": str(whole)},)
    with pytest.raises(UserError, match="whole has folders of splits: train, val; give the path"):
        measured(places, opened, shifts)
    shutil.rmtree(whole / "train")
    (whole / "val").rename(whole / "test")
    with pytest.raises(UserError, match="whole has folders of splits: test; give the path"):
        measured(places, opened, shifts)


def test_missing_classes_are_no_choice(places, opened, tmp_path):
    """Images that look like the first class, and a little like the class of their folder."""

    def doubtful(label, rng):
        image = samples.picture(label, rng) // 2
        image[..., 0] += 120
        return image

    options = {"labels_of": samples.CLASSES.index, "picture": doubtful}
    fewer = folder(tmp_path / "a", names=samples.CLASSES[1:], **options)
    whole = folder(tmp_path / "b", **options)
    shifts = tuple(
        {"kind": "classes", "name": place.name, "path": str(place)} for place in (fewer, whole)
    )
    metrics = measured(places, opened, shifts).metrics
    assert metrics["clean/top1"] == 100
    assert metrics["b/top1"] == pytest.approx(100 / 3)  # all are taken for the first
    assert metrics["a/top1"] == 100  # which cannot be chosen where it is missing


def test_frost_that_is_drawn_is_said_wherever_its_numbers_are(places, tmp_path):
    found = measure(
        places, tmp_path, (), robustness__corruptions="frost", robustness__severities=(3,),
        data__test_examples=3,
    )  # fmt: skip
    (said,) = [line for line in found["warnings"] if line.startswith("frost is generated")]
    assert said in samples.results_of(tmp_path / "out")["warnings"]
    assert said.split("authors")[0] in (tmp_path / "out/report.html").read_text()
    assert said.split("authors")[0] in comparison({"one": found, "two": found})
    model = open_model(str(places[0]))
    manifest = {"usage": {"can_jax": "run"}, "checked": {"images": 3, "largest_error": {"a": 1e-7}}}
    results = results_of(model, [str(tmp_path / "out")])
    assert f"- robustness: {said}" in card_of(model, "big_vision", "encoder", manifest, results)


def test_mce_is_not_of_corruptions_computed_here(places, opened, monkeypatch):
    """A classifier of 1,000 classes under all corruptions there are, as if it was but one."""
    monkeypatch.setattr("can_jax.evaluate.protocols.robustness.CORRUPTIONS", {"contrast": None})
    config = resolve_evaluation(samples.evaluation("robustness", places[1], data__test_examples=1))
    task, findings = dataclasses.replace(opened, config=config), EvalResults()

    def logits(split):
        return np.eye(1000)[split.labels]

    robustness(task, task.pair(findings).test, lambda: logits, findings)
    assert findings.metrics["corrupted/top1"] == 100
    assert findings.metrics.keys() >= {f"contrast/{severity}/top1" for severity in range(1, 6)}
    assert not any("mce" in name for name in findings.metrics)
    assert not any("CE (%)" in row for rows in findings.tables.values() for row in rows)
    assert not any("frost" in line for line in findings.warnings)


def test_warning_about_missing_classes_is_one_without_a_local_path(opened, tmp_path):
    """Model cards, which may be published, show this warning."""
    for name in ("fog", "snow"):
        for severity in range(1, 6):
            place = tmp_path / name / str(severity)
            folder(place, samples.CLASSES.index, count=1, names=samples.CLASSES[:2])
    shift, found = {"kind": "imagenet_c", "path": str(tmp_path)}, EvalResults()
    imagenet_c(opened, shift, Classes(np.arange(3), samples.CLASSES), found)
    assert found.warnings == [
        "imagenet_c: 10 folders, such as snow/1, have no image of 1 of 3 classes, such as "
        "'n01484850'"
    ]


@pytest.mark.parametrize(
    ("names", "severities", "reason"),
    [
        (("fog", "frost"), (1, 2, 3, 4, 5), "has no folder of gaussian_noise, shot_noise, impulse"),
        (CORRUPTIONS, (1, 3), "config.robustness.severities lacks some of 1 to 5"),
    ],
)
def test_missing_corruptions_are_named_with_the_mean_that_lacks_them(
    places, opened, names, severities, reason
):
    config = samples.evaluation("robustness", places[1], robustness__severities=severities)
    task, found = dataclasses.replace(opened, config=resolve_evaluation(config)), EvalResults()
    clean = task.read(task.pair(EvalResults()).test)
    read = dict.fromkeys(names, lambda severity: clean)
    curves(task, lambda split: np.eye(3)[split.labels], found, read, "imagenet_c/", relative=True)
    assert found.metrics["imagenet_c/corrupted/top1"] == 100
    assert "imagenet_c/mce" not in found.metrics
    (warning,) = found.warnings
    assert warning.startswith("imagenet_c/mce is omitted") and reason in warning
    assert found.data["imagenet_c"].startswith("val:")


@pytest.mark.parametrize("names", [("a", "a"), (None, None), ("fog", "b"), ("test", "b")])
def test_test_sets_of_one_name_are_refused(names):
    def resolve(*shifts):
        shifts = tuple(shift | {"path": "/data"} for shift in shifts)
        resolve_evaluation(samples.evaluation("robustness", robustness__shifts=shifts))

    with pytest.raises(UserError, match="is already used in the results"):
        resolve(*({"kind": "classes", "name": name} for name in names))
    resolve({"kind": "classes"}, {"kind": "numbered"}, {"kind": "classes", "name": "b"})


def test_the_table_knows_all_kinds_of_test_sets():
    assert set(SHIFT["kind"].kind.choices) == {*SHIFTS, "imagenet_c"}


@pytest.mark.slow
def test_corruptions_on_the_fly_and_as_distributed(places, tmp_path):
    index = {name: i for i, name in enumerate(samples.CLASSES)}
    for name in CORRUPTIONS:
        for severity in (1, 2, 3, 4, 5):
            folder(tmp_path / "c" / name / str(severity), index.get, count=1)
    shifts = ({"kind": "imagenet_c", "name": "imagenet_c", "path": str(tmp_path / "c")},)
    found = measure(
        places, tmp_path, shifts, robustness__corruptions="contrast,gaussian_noise",
        robustness__severities=(1, 2, 3, 4, 5), data__test_examples=7,
    )  # fmt: skip
    metrics = found["metrics"]
    assert metrics["imagenet_c/mce"] == 0 and metrics["imagenet_c/corrupted/top1"] == 100
    assert found["examples"]["contrast/5"] == 7 and found["examples"]["imagenet_c/fog/2"] == 3
    on_the_fly = [v for k, v in metrics.items() if k.startswith(("contrast/", "gaussian_noise/"))]
    assert len(on_the_fly) == 10
    assert metrics["corrupted/top1"] == pytest.approx(np.mean(on_the_fly))
    assert "mce" not in metrics  # of a few corruptions, and not of ImageNet


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ({"kind": "clases", "path": "."}, "one of classes, numbered, real, objectnet, imagenet_c"),
        ({"kind": "classes", "path": "/no/such/place"}, "path=/no/such/place does not exist"),
        (
            {"kind": "objectnet", "path": "{imagenet}"},
            "folder_to_objectnet_label.json does not exist",
        ),
        (
            {"kind": "objectnet", "path": "{objectnet}"},
            "pytorch_to_imagenet_2012_id.json does not exist",
        ),
        (
            {"kind": "real", "path": "{imagenet}/val", "labels": "{objectnet}/real.json"},
            "real.json cannot be read",
        ),
        ({"kind": "imagenet_c", "path": "{imagenet}"}, "has no corruption folder"),
        (
            {"kind": "numbered", "path": "{imagenet}/val"},
            "is not an integer label of the training data; the largest label is 2",
        ),
    ],
)
def test_wrong_test_set_is_one_line_before_anything_is_read(
    places, opened, tmp_path, shift, message
):
    folders = {name: tmp_path / name for name in ("imagenet", "objectnet")}
    samples.imagenet(folders["imagenet"], train=0, val=1)
    (folders["objectnet"] / "mappings").mkdir(parents=True)
    for name in ("mappings/folder_to_objectnet_label", "mappings/objectnet_to_imagenet_1k"):
        (folders["objectnet"] / f"{name}.json").write_text("{}")
    (folders["objectnet"] / "real.json").write_text("[[0], [1")
    shift = {key: value.format(**folders) for key, value in shift.items()}
    unread = dataclasses.replace(opened, read=Unread(opened.subject, opened.mesh, 16))
    with pytest.raises(UserError, match=message) as error:
        measured(places, unread, (shift,))
    assert "\n" not in str(error.value)
