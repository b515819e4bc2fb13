"""A wrong configuration is refused in one line that names the key."""

import json

import pytest
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from can_jax.config.durations import TOTAL, steps_of
from can_jax.config.resolve import default_config, from_json, resolve, to_json
from can_jax.evaluate.config import default_evaluation, resolve_evaluation
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__attention": "cudnn", "model__dtype": "float32"},
            "model.attention='cudnn' needs model.dtype=bfloat16, not float32",
        ),
        (
            {"model__attention": "cudnn", "model__dtype": "bfloat16", "model__heads": 2},
            r"divisible by 8, not model\.width / model\.heads = 12",
        ),
        ({"model__patch_size": 5}, "model.patch_size=5 does not divide data.image_size=16x16"),
        ({"model__mask_ratio": 0.99}, "model.mask_ratio=0.99 masks all 16 patches"),
        ({"model__mask_ratio": 0.0}, "hides none of 16 patches"),
        ({"model__mask_ratio": 1.0}, "model.mask_ratio=1.0: give a number at least 0, below 1"),
        ({"model__size": "XL"}, "model.size='XL': give one of Ti, S, B, L, H"),
        ({"model__remat": "all"}, "model.remat='all'"),
        ({"model__dtype": "float16"}, "model.dtype='float16'"),
        ({"model__heads": 5}, "model.heads=5 does not divide model.width=24"),
        ({"model__width": 18}, "model.width=18: .*divisible by 4"),
        ({"data__source": "folders"}, "data.source='folders': give one of"),
        ({"data__source": "folder"}, "data.path is not set"),
        ({"data__source": "tfds"}, "data.name is not set"),
        ({"data__channels": 9}, "data.channels=9"),
        ({"data__source": "folder", "data__path": "x", "data__channels": 2}, "1, 3 or 4 channels"),
        ({"data__channels": 1, "augment__grayscale": 0.2}, "augment.grayscale=0"),
        ({"data__image_size": (16, 16, 3)}, "data.image_size"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"augment__views": 1}, "augment.views=1"),
        ({"augment__crop_area": (0.5, 0.2)}, "augment.crop_area"),
        ({"augment__jitter": 1.5}, "augment.jitter=1.5: give a number at least 0, at most 1"),
        ({"optimizer__options": (("a", 1), ("a", 2))}, "give .* pairs with distinct names"),
        (
            {"objective__contrastive__temperature": 0.0},
            "temperature=0.0: give a number at least 0.001",
        ),
        ({"objective__denoising__weight": -1.0}, "objective.denoising.weight=-1.0"),
        ({"objective__contrastive__pool": "cls"}, "objective.contrastive.pool='cls'"),
        ({"noise__sigma_max": 0.0}, "there is no noise to predict"),
        ({"noise__target": "raw"}, "noise.target='raw'"),
        (
            {"optimizer__learning_rate": 0.0},
            "optimizer.learning_rate=0.0: give a number at least 1e-09",
        ),
        ({"checkpoint__keep_last": 0}, "checkpoint.keep_last=0"),
        ({"log_every_steps": 0}, "log_every_steps=0"),
        ({"total_steps": -1}, "total_steps=-1: give a whole number at least 1"),
    ],
)
def test_wrong_value_is_named(changes, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        small_config(**changes)


def test_all_weights_zero_is_refused():
    blocks = ("contrastive", "reconstruction", "denoising")
    with pytest.raises(UserError, match="all weights are 0"):
        small_config(**{f"objective__{block}__weight": 0.0 for block in blocks})


def test_no_duration_is_refused():
    config = default_config()
    config.data.update(source="shapes", image_size=32)
    with pytest.raises(UserError, match="total_epochs"):
        resolve(config)


def test_unknown_key_names_the_nearest():
    config = default_config().unlock()
    config.model.mask_ration = 0.5
    with pytest.raises(
        UserError, match=r"config\.model\.mask_ration; did you mean config\.model\.mask_ratio\?"
    ):
        resolve(config)


def test_recipe_from_scratch_is_told_what_is_missing():
    with pytest.raises(UserError, match="is missing"):
        resolve(ConfigDict({"seed": 0}))


def test_value_of_another_type_is_refused():
    config = default_config().unlock()
    with config.ignore_type():
        config.model.patch_size = "16"
    with pytest.raises(UserError, match="config.model.patch_size='16': give a whole number"):
        resolve(config)


@pytest.mark.parametrize(("given", "size"), [(16, (16, 16)), ((8, 16), (8, 16)), ((16,), (16, 16))])
def test_image_size_is_one_number_or_two(given, size):
    assert small_config(data__image_size=given).data.image_size == size


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"total_steps": 7}, 7),
        ({"total_epochs": 2.0}, 20),
        ({"total_epochs": 0.5}, 5),
        ({"total_examples": 250}, 2),
        ({"total_examples": 260}, 3),
        ({"total_epochs": 1e-6}, 1),
        ({"total_epochs": 5e-324}, 1),
        ({"total_epochs": 0.0}, 0),
        ({}, None),
    ],
)
def test_durations_in_any_unit(keys, steps):
    assert steps_of(ConfigDict(keys | {"batch_size": 100}), TOTAL, examples=1000) == steps


def test_shipped_defaults_are_the_papers():
    config = default_config()
    weights = [config.objective[k].weight for k in ("contrastive", "reconstruction", "denoising")]
    assert weights == [0.03, 0.67, 0.30]
    assert (config.model.mask_ratio, config.noise.sigma_max) == (0.5, 0.05)
    assert config.objective.contrastive.temperature == 0.1


def test_home_is_expanded_wherever_a_path_stands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = small_config(
        init_from="~/w.npz", data__path="~/d/{a,b}-*.tar", data__index="~",
        data__mixture=({"path": "~/one", "weight": 2.0}, {"path": "/two~", "name": "a~b"}),
    )  # fmt: skip
    assert (config.init_from, config.data.path) == ("/home/me/w.npz", "/home/me/d/{a,b}-*.tar")
    assert config.data.index == "/home/me"
    assert config.data.mixture == (
        {"path": "/home/me/one", "weight": 2.0}, {"path": "/two~", "name": "a~b"}
    )  # fmt: skip


def test_home_is_expanded_in_an_evaluation(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = default_evaluation()
    config.data.update(source="folder", path="~/d")
    config.fewshot.datasets = ({"name": "pets", "path": "~/pets"},)
    config.robustness.shifts = ({"kind": "real", "path": "~/val", "labels": "~/real.json"},)
    resolved = resolve_evaluation(config)
    assert resolved.data.path == "/home/me/d"
    assert resolved.fewshot.datasets[0]["path"] == "/home/me/pets"
    assert resolved.robustness.shifts[0]["labels"] == "/home/me/real.json"


@pytest.mark.parametrize(
    ("path", "home", "reason"),
    [("~no_such_user/d", "/home/me", "there is no user 'no_such_user'"), ("~/d", "", "HOME")],
)
def test_home_that_is_none_is_refused_by_name(monkeypatch, path, home, reason):
    monkeypatch.setenv("HOME", home)
    with pytest.raises(UserError, match=rf"config\.data\.mixture: path={path}: {reason}.*\./~"):
        small_config(data__mixture=({"path": path},))


OLD_NAME = {
    "attribute": lambda config: setattr(config.augment, "greyscale", 0.4),
    "update": lambda config: config.augment.update(greyscale=0.4),
    "study": lambda config: config.update_from_flattened_dict({"augment.greyscale": 0.4}),
    "command line": lambda config: config_path.set_value("augment.greyscale", config, 0.4),
}


@pytest.mark.parametrize("way", OLD_NAME)
def test_old_name_of_a_key_sets_the_new_one(way):
    config = small_config()
    OLD_NAME[way](config)
    assert config_path.get_type("augment.greyscale", config) is float
    config = resolve(config)
    assert config.augment.grayscale == config.augment.greyscale == 0.4
    assert "greyscale" not in config.augment


def test_old_name_of_a_key_is_read_from_a_run():
    stored = json.loads(to_json(small_config(augment__grayscale=0.4)))
    stored["augment"]["greyscale"] = stored["augment"].pop("grayscale")
    assert from_json(json.dumps(stored)).augment.grayscale == 0.4
