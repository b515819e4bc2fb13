"""Settings that cannot work are refused with their key, and durations mean what a user sets."""

import copy
import functools
import json
import math

import pytest
from ml_collections import ConfigDict

from can_jax import objectives
from can_jax.cli.flags import OptionalTupleParser
from can_jax.config.defaults import RECIPE
from can_jax.config.durations import keep_overrides
from can_jax.config.resolve import from_json, load_recipe, resolve, to_json
from can_jax.evaluate.config import default_evaluation, evaluation_table, resolve_evaluation
from can_jax.train.run_length import make_run_length
from can_jax.utils.errors import UserError
from can_jax.utils.settings import (
    Blocks,
    Choice,
    Number,
    Several,
    Special,
    Switch,
    Text,
    Whole,
    check_table,
    configuration,
    flat_keys,
)
from tests.helpers.configs import small_config
from tests.helpers.runs import ROOT, main_in_process

INF, NAN = math.inf, math.nan
TABLES = {"recipe": RECIPE, "evaluation": evaluation_table()}


def with_value(config, name, value):
    """The configuration with a key set, whatever the type of the value."""
    config = config.copy_and_resolve_references()
    *blocks, key = name.split(".")
    block = config
    for part in blocks:
        block = block[part]
    with config.unlocked(), config.ignore_type():
        block[key] = value
    return config


def wrong_values(key):
    """Values of other kinds and beyond the range of a key."""
    kind = key.kind
    if not key.may_be_none:
        yield None
    if isinstance(kind, Number):
        yield from (True, "1", (1,), NAN, INF, -INF)
        beyond = (kind.low - 1, kind.high * 2 + 1, kind.above, kind.below)
        yield from (x for x in beyond if math.isfinite(x) and x not in kind.also)
    if isinstance(kind, Whole):
        yield from (1.0, 1.5)
    if isinstance(kind, Switch):
        yield from (1, 0.0, "True")
    if isinstance(kind, Text | Choice):
        yield from ("", 1, True, ("a",))
    if isinstance(kind, Choice):
        yield "no such choice"
    if isinstance(kind, Several):
        yield from (1, "ab", (object(),))
        if kind.length:
            value = tuple(key.default)
            yield from (value[:-1], (*value, value[-1]))
        if kind.ascending:
            yield tuple(reversed(key.default))
        if isinstance(kind.of, Number):
            yield from ((NAN,) * (kind.length or 3), (True,) * (kind.length or 3))
            yield from (("1",) * (kind.length or 3), (kind.of.low - 1,) * (kind.length or 3))
        if not kind.empty:
            yield ()


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_values_beyond_what_the_table_states_are_refused_by_key(table):
    config = configuration(table).to_dict()
    check_table(config, table, "")
    for name, key in flat_keys(table):
        assert key.accepts(key.default) and key.meaning.endswith("."), name
        *blocks, last = name.split(".")
        block, part = config, table
        for inner in blocks:
            block, part = block[inner], part[inner]
        values = list(wrong_values(key))
        assert values or isinstance(key.kind, Special), name
        for value in values:
            # The whole is checked for the first of them, which takes longer, and then the block.
            first = value is values[0]
            checked, by, prefix = (
                (config, table, "") if first else (block, part, name[: -len(last)])
            )
            block[last] = value
            with pytest.raises(UserError) as error:
                check_table(checked, by, "", prefix)
            message = str(error.value)
            assert message.startswith(f"config.{name}={value!r}: give ") and "\n" not in message
        block[last] = key.default


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("augment.crop_area", 0.2), ("augment.crop_area", (0.2,)), ("augment.crop_aspect", (1.0,)),
        ("augment.blur_sigma", (0.1,)), ("augment.mean", (NAN,) * 3), ("augment.brightness", INF),
        ("optimizer.beta1", 1.0), ("optimizer.beta2", 1.0), ("optimizer.beta2", -0.1),
        ("optimizer.epsilon", 0), ("optimizer.epsilon", -1), ("optimizer.weight_decay", -1),
        ("optimizer.learning_rate", INF), ("optimizer.warmup_steps", -5),
        ("optimizer.warmup_epochs", NAN), ("optimizer.learning_rate_scale", (("a", -1),)),
        ("optimizer.learning_rate_scale", ("a", 1)), ("optimizer.freeze", (1,)),
        ("noise.sigma_max", INF), ("noise.level_scale", 0), ("noise.level_scale", NAN),
        ("model.projector.outputs", 0), ("model.projector.outputs", 1),
        ("model.projector.hidden", -1), ("probe.k", 0), ("probe.temperature", 0),
        ("probe.bank", 0), ("probe.queries", -1), ("checkpoint.keep_every_steps", 0),
        ("figures.images", 0), ("data.image_size", (16, 0)), ("data.image_size", True),
        ("data.image_size", None), ("data.range", (5, 1)), ("data.range", (0, NAN)),
        ("data.mixture", ("a",)), ("data.path", ""), ("mesh.data", 0), ("mesh.fsdp", -2),
        ("seed", -1), ("batch_size", 8.0), ("batch_size", True), ("spike.steps", -1),
        ("objective.contrastive.block", 0), ("stuck_after_seconds", INF),
        ("augment.mean", (10**400, 0, 0)), ("data.range", (10**400, 1)),
        ("data.range", (0, 10**400)), ("data.range", (2**53, 2**53 + 1)),
        ("data.range", (-1.7e308, 1.7e308)), ("noise.sigma_max", False),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(name, value):
    with pytest.raises(UserError, match=f"^config.{name}="):
        resolve(with_value(small_config(), name, value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__patch_size": 1, "data__channels": 1, "augment__mean": (0.5,),
          "augment__std": (0.5,)}, "config.model.patch_size=1 with data.channels=1: .*normalize"),
        ({"optimizer__beta2": 0.8}, "config.optimizer.beta2=0.8 with beta1=0.9: .*, 0.81"),
        ({"optimizer__beta1": 0.5, "optimizer__beta2": 0.25}, "beta2=0.25 with beta1=0.5"),
        ({"optimizer__weight_decay": 1e3, "optimizer__learning_rate": 1.0},
         "config.optimizer.weight_decay=1000: with a peak learning rate of 0.03125"),
        ({"optimizer__weight_decay": 2.0, "optimizer__learning_rate": 1.0,
          "optimizer__learning_rate_scale": (("encoder/", 20),)}, "peak learning rate of 0.625"),
        ({"optimizer__learning_rate": 10.0, "optimizer__learning_rate_scale": (("mlp", 1e3),)},
         "config.optimizer.learning_rate=10 is a peak learning rate of 312.5 with this batch_size"),
        ({"data__source": "mixture", "data__mixture": ({"path": 3},)},
         r"config.data.mixture\[0\]: path=3: give a string"),
        ({"data__source": "mixture", "data__mixture": ({"weight": NAN},)},
         r"config.data.mixture\[0\]: weight=nan: give a number above 0"),
        ({"data__source": "mixture", "data__mixture": ({"source": "folders"},)},
         r"config.data.mixture\[0\]: source='folders': give one of"),
        ({"data__source": "mixture", "data__mixture": ({1: 2},)}, "unknown key 1"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_each_other(changes, message):
    with pytest.raises(UserError, match=message):
        small_config(**changes)


def test_blocks_and_values_do_not_take_each_others_place():
    for value in (3, None):
        with pytest.raises(
            UserError, match=rf"config.model={value} replaces a block of keys.*size"
        ):
            resolve(with_value(small_config(), "model", value))
    with pytest.raises(
        UserError, match="config.seed is set to a block of keys: give a whole number"
    ):
        resolve(with_value(small_config(), "seed", ConfigDict({"a": 1})))
    with pytest.raises(UserError, match="config.model=3: .* expects a block of keys here"):
        from_json('{"model": 3}')


def test_lists_stand_for_tuples():
    config = resolve(with_value(small_config(), "augment.crop_area", [0.5, 1.0]))
    assert config.augment.crop_area == (0.5, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["augment.crop_area=0.2"], r"config.augment.crop_area=(0.2,): give a tuple of 2 numbers"),
        (["optimizer.weight_decay=nan"], "config.optimizer.weight_decay=nan: give a number"),
        (["batch_size=None"], "config.batch_size=None: give a whole number"),
        (["data.split=None"], "config.data.split=None: give a string"),
        (["total_epochs=None", "data.path=x"], "config.total_minutes: none is set"),
        (["augment.crop_area=None"], "config.augment.crop_area=(): give a tuple of 2 numbers"),
        (["total_steps=5", "total_epochs=2"],
         "--config.total_steps and --config.total_epochs set the same duration: give one of them"),
        (["optimizer.warmup_share=0.1", "optimizer.warmup_examples=9"],
         "--config.optimizer.warmup_examples and --config.optimizer.warmup_share set the same"),
    ],
)  # fmt: skip
def test_values_of_the_command_line(tmp_path, options, message):
    overrides = [f"--config.{option}" for option in options]
    place = tmp_path / "run"
    done = main_in_process("can_jax.main", "--config=vit_b", *overrides, f"--workdir={place}")
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
    assert not place.exists()


def test_a_duration_of_the_command_line_wins_over_the_recipes_unit(tmp_path):
    """Quickstart states 800 steps; three epochs of 256 images are six steps."""
    overrides = ["total_epochs=3", "data.shapes_count=256", "data.image_size=16"]
    overrides += ["probe.every_epochs=none", "optimizer.warmup_epochs=3"]
    options = [f"--config.{override}" for override in overrides]
    done = main_in_process("can_jax.main", "--config=quickstart", *options, f"--workdir={tmp_path}")
    assert "config.optimizer.warmup_epochs=3.0 is a warm-up of 6 steps" in done.stderr
    assert "the run has 6 steps" in done.stderr
    assert not any(tmp_path.iterdir())


def test_overrides_unset_the_other_units():
    recipe = load_recipe(str(ROOT / "configs" / "own.py"), "quickstart")
    recipe.total_examples = 1280
    keep_overrides(recipe, {"total_examples": 1280, "probe.every_steps": 0, "seed": 1})
    assert (recipe.total_steps, recipe.total_examples) == (None, 1280)
    assert resolve(recipe).total_examples == 1280
    study = ConfigDict({"recipe": load_recipe(str(ROOT / "configs" / "own.py"), "quickstart")})
    study.recipe.optimizer.warmup_steps = 3
    keep_overrides(study, {"recipe.optimizer.warmup_steps": 3}, "recipe.")
    assert resolve(study.recipe).optimizer.warmup_share is None
    keep_overrides(recipe, {"total_examples": None})  # which unsets that unit alone
    assert recipe.total_examples == 1280


def test_two_units_of_a_recipe_are_refused():
    recipe = load_recipe(str(ROOT / "configs" / "own.py"), "quickstart")
    recipe.total_epochs = 3
    message = "config.total_steps=800 and config.total_epochs=3.0 are both set: set one of them"
    with pytest.raises(UserError, match=message):
        resolve(recipe)
    recipe.total_steps = None
    assert resolve(recipe).total_epochs == 3
    with pytest.raises(UserError, match="optimizer.warmup_steps=2 and .*warmup_share=0.1"):
        small_config(optimizer__warmup_share=0.1)  # whose warmup_steps are 2
    with pytest.raises(UserError, match="probe.every_steps=0 and config.probe.every_epochs=1.0"):
        small_config(probe__every_steps=0, probe__every_epochs=1)


@pytest.mark.parametrize(
    ("warmup", "steps"),
    [
        ({}, 5), ({"share": 0.1}, 10), ({"share": 0.0}, 0), ({"share": 0.9999}, 99),
        ({"steps": 7}, 7), ({"steps": 0}, 0), ({"epochs": 1.5}, 12), ({"examples": 80}, 10),
        ({"epochs": 0.01}, 0), ({"examples": 799}, 99), ({"steps": 100}, None),
        ({"epochs": 12.5}, None), ({"examples": 800}, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("total", [{"steps": 100}, {"epochs": 12.5}, {"examples": 800}])
def test_warmup_in_any_unit_is_shorter_than_the_run(warmup, steps, total):
    """Of 100 steps with 8 of 64 images each."""
    units = {"total_steps": None, "optimizer__warmup_steps": None}
    units |= {f"total_{unit}": value for unit, value in total.items()}
    units |= {f"optimizer__warmup_{unit}": value for unit, value in warmup.items()}
    config = small_config(**units)
    if steps is None:
        with pytest.raises(UserError, match=r"config.optimizer.warmup_\w+=.*shorten the warm-up"):
            make_run_length(config, 64)
    else:
        assert make_run_length(config, 64)[1:3] == (100, steps)


def test_recipes_keep_their_warmup_where_the_run_is_shortened():
    for epochs in (9, 1, 0.01):
        recipe = load_recipe(str(ROOT / "configs" / "own.py"), "cifar10")
        recipe.total_epochs, recipe.data.path = epochs, "/data"
        times = make_run_length(resolve(recipe), 50000)
        assert times.warmup < times.total
        if epochs == 9:
            assert (times.total, times.warmup) == (3516, 391)  # of one epoch


def older(config, **optimizer):
    """The stored configuration as a version wrote it that had no share and no examples."""
    stored = json.loads(to_json(config))
    del stored["optimizer"]["warmup_share"], stored["optimizer"]["warmup_examples"]
    stored["optimizer"].update(optimizer)
    return stored


def test_stored_durations_of_older_versions_are_read_as_those_read_them():
    stored = older(small_config(), warmup_steps=None, warmup_epochs=0.25)
    read = resolve(from_json(json.dumps(stored)))
    assert read.optimizer.warmup_share is None and make_run_length(read, 64).warmup == 2
    stored["optimizer"]["warmup_steps"] = 3
    stored |= {"total_epochs": 9.0}
    stored["probe"] |= {"every_steps": 4, "every_epochs": 1.0}
    read = resolve(from_json(json.dumps(stored)))
    assert make_run_length(read, 64)[1:4] == (4, 3, 4)
    assert (read.total_epochs, read.optimizer.warmup_epochs) == (None, None)


def test_stored_settings_that_are_refused_now_are_named():
    stored = json.loads(to_json(small_config()))
    stored["optimizer"]["epsilon"] = 0.0
    with pytest.raises(UserError, match=r"config.optimizer.epsilon=0.0: give"):
        resolve(from_json(json.dumps(stored)))


def test_the_warmup_of_a_classifier_is_shorter_than_its_training():
    config = default_evaluation()
    config.protocol, config.classify.total_epochs = "classify", 5
    with pytest.raises(UserError, match="config.classify.warmup_epochs=5 is not shorter than"):
        resolve_evaluation(config)


def test_data_sets_of_few_shots_are_checked_as_data_is():
    config = default_evaluation()
    config.fewshot.datasets = ({"path": "/d", "name": "d"}, {"path": 3})
    with pytest.raises(UserError, match=r"config.fewshot.datasets\[1\]: path=3: give a string"):
        resolve_evaluation(config)


def test_every_kind_is_described():
    assert Number(0, 1).describe() == "a number at least 0, at most 1"
    assert Whole(4, multiple=4).describe() == "a whole number at least 4, divisible by 4"
    assert Whole(1, also=(-1,)).describe() == "a whole number at least 1, or -1"
    pair = Several(Number(above=0), length=2, ascending=True)
    assert pair.describe() == "a tuple of 2 numbers above 0, in ascending order"
    words = Several(Choice(("a", "b")), empty=False)
    assert words.describe() == "a nonempty tuple of names among a, b" and not words.accepts(())
    kinds = {type(key.kind) for table in TABLES.values() for _, key in flat_keys(table)}
    assert kinds == {Number, Whole, Switch, Text, Choice, Several, Special, Blocks}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.learning_rate", True), ("optimizer.clip_norm", False),
        ("model.mask_ratio", False), ("data.cache_gb", True),
    ],
)  # fmt: skip
def test_booleans_and_huge_numbers_do_not_become_floats(name, value):
    """They are set as a recipe does, and as the configuration of an older run is read."""
    recipe = load_recipe(str(ROOT / "configs" / "own.py"), "quickstart")
    recipe.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=f"^config.{name}=.*: give a number"):
        resolve(copy.deepcopy(recipe))
    stored = json.loads(to_json(small_config()))
    *blocks, key = name.split(".")
    functools.reduce(dict.__getitem__, blocks, stored)[key] = value
    with pytest.raises(UserError, match=f"^config.{name}=.*: give a number"):
        resolve(from_json(json.dumps(stored)))
    recipe.update_from_flattened_dict({name: 1})
    assert type(recipe.to_dict()[blocks[0]][key]) is float


def test_numbers_of_many_digits_are_refused_by_key():
    for value in (10**400, -(10**400), 10**5000):
        for name in ("seed", "optimizer.learning_rate", "total_epochs"):
            recipe = load_recipe(str(ROOT / "configs" / "own.py"), "quickstart")
            recipe.update_from_flattened_dict({name: value})
            with pytest.raises(UserError, match=rf"^config.{name}=.{{1,210}}: give a "):
                resolve(recipe)


def test_none_empties_a_tuple():
    recipe = copy.deepcopy(load_recipe(str(ROOT / "configs" / "own.py"), "quickstart"))
    recipe.optimizer.freeze = ("encoder/",)
    recipe.optimizer.freeze = None
    assert resolve(recipe).optimizer.freeze == ()
    recipe.augment.crop_area = None
    with pytest.raises(UserError, match="config.augment.crop_area=None: give a tuple of 2"):
        resolve(recipe)
    parser = OptionalTupleParser()
    assert [parser.parse(x) for x in ("None", "()", "(1,)", "a/")] == [(), (), (1,), ("a/",)]


def test_only_keys_that_may_be_none_offer_it():
    for value in ((16, 0), 10**400, None):
        with pytest.raises(UserError, match=r"data.image_size=.*\(height, width\), in pixels$"):
            resolve(with_value(small_config(), "data.image_size", value))
    assert TABLES["evaluation"]["data"]["image_size"].describe().endswith("or None")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("total_epochs", 1e9), ("total_examples", 10**15), ("probe.every_epochs", 1e9),
        ("optimizer.warmup_examples", 10**15),
    ],
)  # fmt: skip
def test_durations_beyond_what_steps_are_counted_in_are_refused_by_key(key, value):
    unset = {"total_steps": None} if key.startswith("total") else {}
    if key.startswith("optimizer"):
        unset["optimizer__warmup_steps"] = None
    if key.startswith("probe"):
        unset["probe__every_steps"] = None
    config = small_config(**unset, **{key.replace(".", "__"): value})
    with pytest.raises(UserError, match=f"^config.{key}=.* steps with batch_size=8: at most 2,147"):
        make_run_length(config, 64)


def test_what_does_not_relate_rows_sees_a_microbatch():
    """Whatever `negatives` says; what relates rows sees the whole batch with `batch`."""
    pair = objectives.Objective({"pooled"}, len, weight=0.5, min_images=2)
    with objectives.OBJECTIVES.temporarily("pair", pair):
        assert small_config(accumulation__microbatches=4)
        for negatives in ("batch", "microbatch"):
            settings = {"microbatches": 8, "negatives": negatives}
            changes = {f"accumulation__{name}": value for name, value in settings.items()}
            weights = {"objective__contrastive__weight": 0.0}
            with pytest.raises(UserError, match="objective.pair requires at least 2 images"):
                small_config(**changes, **weights)
    assert small_config(accumulation__microbatches=8)


@pytest.mark.parametrize("unit", ["every_steps", "every_epochs"])
def test_a_probe_of_a_stream_is_refused_by_the_key_that_was_set(unit):
    changes = {"probe__every_steps": None, f"probe__{unit}": 3, "data__streaming": True}
    data = {"data__source": "webdataset", "data__path": "/d", "data__examples": 64}
    with pytest.raises(UserError, match=rf"^config.probe.{unit}=3(\.0)?: a streamed data set"):
        small_config(**changes, **data)
