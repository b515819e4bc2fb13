"""Results belong to the weights, the data and the settings that they name."""

import dataclasses
import json
import shutil

import pytest
from etils import epath

from can_jax.checkpoint.identity import IDENTITY, differences
from can_jax.config.resolve import load_recipe
from can_jax.evaluate.config import resolve_evaluation
from can_jax.evaluate.measure import evaluate
from can_jax.evaluate.protocols.registry import PROTOCOLS
from can_jax.evaluate.reports import results
from can_jax.evaluate.reports.provenance import protocol_settings
from can_jax.export.model import open_model
from can_jax.export.model_card import results_of
from can_jax.train.pretrain import pretrain
from can_jax.utils.errors import UserError
from tests.evaluate import samples
from tests.helpers.configs import small_config
from tests.helpers.runs import ROOT


def finetuning(data, **changes):
    """The shipped recipe made small; keyword `classify__mixup=0.5` sets `config.classify.mixup`."""
    config = load_recipe(str(ROOT / "configs/eval/knn.py"), "finetune")
    config.batch_size = 16
    config.data.update(source="folder", path=str(data), test_split="val")
    config.classify.update(total_epochs=1.0, warmup_epochs=0.0, test_every_epochs=2.0)
    return resolve_evaluation(samples.changed(config, **samples.PLAIN | changes))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder with two runs `a` and `b`, `imagenet`, and `a` fine-tuned in `ft`."""
    root = tmp_path_factory.mktemp("provenance")
    for name, seed in (("a", 0), ("b", 1)):
        (root / name).mkdir()
        samples.run_directory(root / name, seed=seed)
    data = samples.imagenet(root / "imagenet")
    evaluate(finetuning(data), str(root / "a"), epath.Path(root / "ft"))
    return root


@pytest.fixture
def place(tuned, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(tuned, tmp_path / "copy")
    return tmp_path / "copy"


def contents(folder):
    """Every file of a folder and its bytes."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_run_resumes_from_other_places(place, tuned):
    """Moved weights and data are the same weights and data."""
    before = samples.results_of(tuned / "ft")
    shutil.move(place / "a", place / "elsewhere")
    again = evaluate(
        finetuning(place / "imagenet", classify__save_every_steps=7, data__threads=1),
        str(place / "elsewhere"), epath.Path(place / "ft"),
    )  # fmt: skip
    assert again["metrics"] == before["metrics"]
    assert again["checkpoint"]["sha256"] == before["checkpoint"]["sha256"]


def newer(place):
    """Go on with pretraining: the next checkpoint holds other weights."""
    shutil.copytree(place / "b/checkpoints/3", place / "a/checkpoints/4")
    return {}, "a"


def other_image(place):
    shutil.copy(*sorted((place / "imagenet/train").rglob("*.JPEG"))[20:22])
    return {}, "a"


def one_less(place):
    sorted((place / "imagenet/val").rglob("*.JPEG"))[3].unlink()
    return {}, "a"


def other_settings(place):
    return {"classify__mixup": 0.5, "model__dtype": "bfloat16", "data__test_split": "train"}, "a"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: ({}, "b"), r"encoder\.path was .*/a, is .*/b, encoder\.sha256 was "),
        (newer, r"encoder\.sha256 was \w{12}…, is \w{12}…, encoder\.step was 3, is 4"),
        (other_image, r"data\.train_images was \w+, is \w+"),
        (one_less, r"data\.test was val:\w+, is val:\w+"),
        (
            other_settings,
            r"data\.test was val:\w+, is train:\w+.*"
            r"protocol\.classify\.mixup was 0\.0, is 0\.5.*run\.dtype was float32, is bfloat16",
        ),
    ],
)
def test_anything_else_is_refused_and_nothing_is_written(place, tuned, change, message):
    changes, run = change(place)
    before = contents(place / "ft")
    with pytest.raises(UserError, match=message) as error:
        evaluate(
            finetuning(place / "imagenet", **changes), str(place / run), epath.Path(place / "ft")
        )
    assert "\n" not in str(error.value) and "give another --workdir" in str(error.value)
    assert contents(place / "ft") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "class"}, "features was patches, is class"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"batch_size": 8}, "batch_size was 16, is 8"),
        ({"classify__total_epochs": 9.0}, "classify.total_epochs was 1.0, is 9.0"),
        ({"classify__freeze_encoder": True}, "classify.freeze_encoder was false, is true"),
        ({"data__train_examples": 5}, "data.train_examples was null, is 5"),
        ({"data__held_out": 0.2}, "data.held_out was null, is 0.2"),
        ({"robustness__bins": 10}, "bins was 15, is 10"),
        ({"classify__remat": "full", "knn__k": (3,), "data__path": "/elsewhere"}, None),
    ],
)
def test_settings_that_change_results_are_compared(tuned, changes, message):
    stored = json.loads((tuned / "ft" / IDENTITY).read_text())["protocol"]
    config = finetuning(tuned / "imagenet", **changes)
    found = differences(stored, protocol_settings(config.to_dict()))
    assert found == ([message] if message else [])


def test_directories_of_other_kinds_are_refused(place):
    config, a = finetuning(place / "imagenet"), str(place / "a")
    with pytest.raises(UserError, match="holds checkpoints but no identity.json"):
        evaluate(config, a, epath.Path(place / "b"))  # of pretraining
    with pytest.raises(UserError, match="holds a fine-tuning run, not a pretraining run"):
        pretrain(small_config(), epath.Path(place / "ft"))
    (place / "ft" / IDENTITY).write_text("{")
    with pytest.raises(UserError, match=r"identity\.json cannot be read"):
        evaluate(config, a, epath.Path(place / "ft"))
    (place / "ft" / IDENTITY).unlink()  # as an older version left it
    with pytest.raises(UserError, match=r"holds checkpoints but no identity\.json"):
        evaluate(config, a, epath.Path(place / "ft"))


def test_classifier_is_not_taken_from_an_earlier_run(place):
    """Without its checkpoints a directory is free for another run, whose classifier is not made."""
    stored = json.loads((place / "ft" / IDENTITY).read_text())
    stored["encoder"]["sha256"] = "0" * 64
    (place / "ft" / IDENTITY).write_text(json.dumps(stored))
    config = samples.evaluation("robustness", place / "imagenet", robustness__corruptions="none")
    with pytest.raises(
        UserError,
        match=r"classifier\.json describes the previous run .*, not the current run: encoder",
    ):
        evaluate(resolve_evaluation(config), str(place / "ft"), epath.Path(place / "out"))


def test_card_takes_results_of_the_run_beside_them_alone(place):
    model = open_model(str(place / "a"))
    (found,) = results_of(model, [str(place / "ft")])
    assert found["metrics"].keys() >= {"finetune/top1"}
    with pytest.raises(UserError, match="but other weights are exported"):
        results_of(open_model(str(place / "b")), [str(place / "ft")])

    def changed(change):
        content = json.loads(json.dumps(found))
        change(content)
        (place / "ft/results.json").write_text(json.dumps(content))

    changed(lambda results: results["protocol"]["classify"].update(learning_rate=1.0))
    where = r"does not belong to the run in this directory: protocol\.classify\.learning"
    with pytest.raises(UserError, match=where):
        results_of(model, [str(place / "ft")])
    changed(lambda results: results["checkpoint"]["model"].update(heads=6))
    with pytest.raises(UserError, match="with heads=6, but the exported run has heads=3"):
        results_of(model, [str(place / "ft")])
    changed(lambda results: results["checkpoint"].update(mean=[0.5, 0.5, 0.5]))
    with pytest.raises(UserError, match="with mean="):
        results_of(model, [str(place / "ft")])
    changed(lambda results: None)
    (place / "ft" / IDENTITY).unlink()
    with pytest.raises(UserError, match=r"has no identity\.json, so the weights"):
        results_of(model, [str(place / "ft")])
    untrained = dataclasses.replace(PROTOCOLS.get("classify"), trains=False)
    with PROTOCOLS.temporarily("classify", untrained):  # the flag decides, not the name
        assert results_of(model, [str(place / "ft")])


def test_results_that_are_replaced_are_named(place, caplog):
    old = samples.results_of(place / "ft")
    results.warn_if_replaced(epath.Path(place / "ft"), old)
    assert not caplog.records
    new = old | {"protocol": old["protocol"] | {"features": "class"}}
    results.warn_if_replaced(epath.Path(place / "ft"), new)
    (record,) = caplog.records
    assert record.getMessage().endswith("held results of classify of " + old["checkpoint"]["path"]
                                        + ", step 3; they are overwritten")  # fmt: skip
    (place / "ft/results.json").write_text("[")
    results.warn_if_replaced(epath.Path(place / "ft"), new)
