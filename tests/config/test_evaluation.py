"""Settings of an evaluation that cannot work are refused with their key, before all else."""

import pytest

import can_jax
from can_jax.evaluate.config import (
    KEYS_READ,
    default_evaluation,
    resolve_evaluation,
    warnings_of,
)
from can_jax.evaluate.protocols.base import EvalProtocol
from can_jax.evaluate.protocols.fewshot import dataset_name, datasets_of
from can_jax.evaluate.protocols.registry import PROTOCOLS
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Key, Whole
from tests.evaluate import samples
from tests.helpers.configs import small_config
from tests.helpers.runs import main_in_process

NAN = float("nan")
REAL = {"kind": "real", "path": "/d"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fewshot__datasets", ({"path": "/a"}, {"pth": "/b"}),
         r"fewshot.datasets\[1\]: unknown key 'pth'; did you mean 'path'"),
        ("fewshot__datasets", [{"source": "folders"}],
         r"fewshot.datasets\[0\]: source='folders': give one of"),
        ("fewshot__datasets", ({"path": "/d", "image_size": 32},),
         r"datasets\[0\]: 'image_size' is the same for all entries: set config.data.image_size"),
        ("fewshot__datasets", ({"path": "/d", "test_examples": 3},), "set config.data.test_exampl"),
        ("fewshot__datasets", ({"path": "/d"}, {"path": "/d"}), r"\[1\]: another data set is nam"),
        ("fewshot__datasets", ({"path": "/d", "range": (5, 1)},), r"\[0\]: range=\(5, 1\): give"),
        ("fewshot__datasets", ({1: 2},), r"fewshot.datasets\[0\]: unknown key 1"),
        ("fewshot__datasets", ("pets",), r"fewshot.datasets=\('pets',\): give a tuple of dicts"),
        ("robustness__corruptions", "fogg", "robustness.corruptions='fogg': give all, none, or"),
        ("robustness__corruptions", "fog,", "robustness.corruptions='fog,': give all, none, or"),
        ("robustness__corruptions", "all,fog", "robustness.corruptions='all,fog': give all"),
        ("robustness__corruptions", "", "robustness.corruptions='': give all, none, or"),
        ("robustness__shifts", ({"kind": "class", "path": "/d"},),
         r"robustness.shifts\[0\]: kind='class': give one of classes, numbered, real"),
        ("robustness__shifts", ({"path": "/d"},), r"robustness.shifts\[0\]: kind is missing"),
        ("robustness__shifts", ({"kind": "classes"},), r"robustness.shifts\[0\]: path is missing"),
        ("robustness__shifts", ({"kind": "classes", "path": 3},), r"\[0\]: path=3: give a string"),
        ("robustness__shifts", (REAL,), r"robustness.shifts\[0\]: set `labels` to"),
        ("robustness__shifts", (REAL | {"label": "/l"},), "unknown key 'label'; did you mean 'lab"),
        ("robustness__shifts", ({"kind": "objectnet", "path": "/d", "labels": "/l"},),
         "only kind='real' reads `labels`"),
        ("model__std", 0, "model.std=0: give a number at least 0.001, at most 1, or one for each"),
        ("model__std", (0.2, 0.0, 0.2), r"model.std=\(0.2, 0.0, 0.2\): give a number at least"),
        ("model__mean", 127.5, "model.mean=127.5: give a number at least 0, at most 1"),
        ("model__mean", (NAN, 0.5, 0.5), r"model.mean=\(nan, 0.5, 0.5\): give a number"),
        ("model__mean", "half", "model.mean='half': give a number"),
        ("model__mean", (), r"model.mean=\(\): give a number"),
        ("model__mean", True, "model.mean=True: give a number"),
        ("data__path", "/d", "data.path=/d has no effect.*, set config.data.source"),
        ("data__split", "val", "data.split=val has no effect.*, set config.data.source"),
    ],
)  # fmt: skip
def test_settings_of_an_evaluation_that_cannot_work(name, value, message):
    with pytest.raises(UserError, match=f"^config.*{message}") as error:
        resolve_evaluation(samples.evaluation("knn", **{name: value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__mean": (0.5, 0.5)},
         "config.model.mean=.* data.channels=3, give one number, or 3 numbers, one for each"),
        ({"data__source": "mixture", "data__mixture": ({"path": 3},)}, r"mixture\[0\]: path=3"),
        ({"classify__learning_rate": 100.0},
         "config.classify.learning_rate=100 is a peak learning rate of 6.25 with this batch_size: "
         "the maximum is 1"),
        ({"classify__weight_decay": 9e3, "classify__learning_rate": 1.0},
         "config.classify.weight_decay=9000: with a peak learning rate of 0.0625"),
    ],
)  # fmt: skip
def test_settings_of_an_evaluation_that_do_not_fit_each_other(changes, message):
    with pytest.raises(UserError, match=message):
        resolve_evaluation(samples.evaluation("classify", "/data", **changes))


def test_settings_that_work_are_taken():
    pets = {"name": "oxford_iiit_pet", "source": "tfds", "test_split": "test", "range": [0, 255]}
    config = samples.evaluation(
        "fewshot", fewshot__datasets=[pets, {"path": "/d"}], robustness__corruptions="fog, snow",
        robustness__shifts=[REAL | {"labels": "/l"}], model__mean=0.5, model__std=[0.2, 0.2, 0.3],
        data__test_split="val", data__train_examples=3,
    )  # fmt: skip
    assert resolve_evaluation(config).fewshot.datasets[0]["range"] == (0.0, 255.0)


def test_protocol_with_the_name_of_another_key_is_refused(monkeypatch):
    protocol = EvalProtocol(lambda task: None, settings={"k": Key(1, Whole(1, 9), "Neighbors.")})
    monkeypatch.setattr(PROTOCOLS, "_values", PROTOCOLS._values | {"data": protocol})
    with pytest.raises(UserError, match="the evaluation protocol 'data' has the name of a config"):
        default_evaluation()


def test_mistakes_of_the_command_line_write_nothing(tmp_path):
    """The checkpoint is not there: the settings are looked at first."""
    options = ["--config=robustness", "--checkpoint=/no/such", f"--workdir={tmp_path / 'out'}"]
    done = main_in_process(
        "can_jax.evaluate", *options, "--config.robustness.corruptions=gausian_noise"
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert (
        "config.robustness.corruptions='gausian_noise': give all, none, or a comma" in done.stderr
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0}, "std=0: a channel cannot have a standard deviation of 0"),
        ({"std": 1e-5}, "std=1e-05: give a number at least 0.001"),
        ({"heads": 0}, "heads=0: give a whole number at least 1"),
        ({"mean": ()}, r"mean=\(\): give a number"),
    ],
)
def test_options_of_load_are_named_as_they_are_given(options, message):
    with pytest.raises(UserError, match=f"^/a/run: {message}"):
        can_jax.load("/a/run", **options)


def test_name_of_an_entry_is_not_its_local_path():
    paths = ("/home/me/pets/", "gs://bucket/pets/*.tar", "pets", None)
    names = [dataset_name(i, {"path": path}) for i, path in enumerate(paths)]
    assert names == ["pets", "*.tar", "pets", "data3"]


@pytest.mark.parametrize(
    ("changes", "index", "labels"),
    [
        ({"path": "/b"}, None, None),
        ({"source": "arrays", "name": "pets"}, None, None),
        ({"path": "/b", "index": "/b/index", "labels": "/b.csv"}, "/b/index", "/b.csv"),
        ({"split": "val"}, None, "/a.csv"),
        ({"name": "pets", "range": (0, 9)}, "/a/index", "/a.csv"),  # the name of the results only
    ],
)
def test_entry_of_other_files_has_not_the_index_and_labels_of_the_data(changes, index, labels):
    options = {"data__path": "/a", "data__index": "/a/index", "data__labels": "/a.csv"}
    data = small_config(data__source="folder", **options).data
    ((_, block, _),) = datasets_of(data, (changes,))
    assert (block.index, block.labels) == (index, labels)


@pytest.mark.parametrize(
    ("protocol", "key", "warning"),
    [
        ("linear", "knn.k", "config.knn.k has no effect on the protocol linear"),
        ("linear", "features", "config.features affects pictures only"),
        ("robustness", "features", "config.features has no effect: the linear classifiers"),
        ("fewshot", "baselines", "config.baselines has no effect on the protocol fewshot"),
        ("knn", "knn.k", None),
        ("knn", "features", None),
        ("robustness", "linear.learning_rates", None),
        ("classify", "robustness.bins", None),
        ("classify", "robustness.shifts", "config.robustness.shifts has no effect on the protocol"),
        ("classify", "held_out", "config.data.held_out is the fraction to hold out for testing"),
        ("fewshot", "held_out", "config.held_out has no effect on the protocol fewshot; config"),
        ("health", "held_out", "config.held_out has no effect on the protocol health"),
        ("knn", "held_out", None),
        ("robustness", "held_out", None),
        ("health", "data.held_out", None),
        ("classify", "classify.layer_decay", None),
    ],
)
def test_given_key_that_a_protocol_does_not_read_is_named(protocol, key, warning):
    config = default_evaluation()
    config.protocol = protocol
    found = list(warnings_of(resolve_evaluation(config), [key, "data.path", "seed"]))
    assert not found if warning is None else len(found) == 1 and warning in found[0]


@pytest.mark.parametrize(
    ("key", "ignored"),
    [
        ("linear.epochs", True),
        ("features", True),
        ("held_out", True),
        ("data.held_out", True),
        ("data.train_examples", True),
        ("data.test_examples", False),
        ("robustness.bins", False),
    ],
)
def test_given_key_that_has_no_effect_on_a_classifier_is_named(key, ignored):
    config = default_evaluation()
    config.protocol = "robustness"
    found = list(warnings_of(resolve_evaluation(config), [key], classifier=True))
    expected = f"config.{key} has no effect on the protocol robustness with a trained classifier"
    assert found == [expected] * ignored


def test_given_key_that_another_setting_makes_void_is_named():
    config = default_evaluation()
    config.protocol, given = "classify", ["classify.layer_decay", "classify.beta2"]
    config.classify.update(freeze_encoder=True, optimizer="lars")
    assert list(warnings_of(resolve_evaluation(config), given)) == [
        "config.classify.beta2 has no effect with config.classify.optimizer=lars",
        "config.classify.layer_decay has no effect with config.classify.freeze_encoder=True",
    ]


def test_the_blocks_of_every_protocol_of_the_package_are_stated():
    assert set(KEYS_READ) <= set(PROTOCOLS.names())
    own = {name for name, p in PROTOCOLS.items() if p.run.__module__.startswith("can_jax.")}
    assert own == set(KEYS_READ)
