"""Given settings that have no effect are named, with the reason."""

import re

import pytest

from can_jax.config.defaults import RECIPE
from can_jax.config.inactive import OF_SOURCES, RULES, inactive
from tests.helpers.configs import small_config


def keys_of(table, prefix=""):
    for name, entry in table.items():
        if hasattr(entry, "items"):
            yield from keys_of(entry, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        (
            {"objective__contrastive__weight": 0.0},
            "objective.contrastive.temperature",
            "weight is 0",
        ),
        ({}, "data.mixture", "config.data.source is"),
        ({}, "data.image_key", "config.data.source is"),
        ({}, "data.cache_gb", "config.data.source is"),
        ({}, "data.disk_cache", "config.data.source is"),
        ({}, "data.window", "config.data.streaming is False"),
        ({}, "data.disk_cache_gb", "config.data.disk_cache is not set"),
        ({"augment__jitter": 0.0}, "augment.hue", "config.augment.jitter is 0"),
        ({"augment__blur": 0.0}, "augment.blur_sigma", "config.augment.blur is 0"),
        (
            {"noise__sigma_max": 0.0, "objective__denoising__weight": 0.0},
            "noise.level_tokens",
            "this run predicts no noise",
        ),
        ({"objective__denoising__weight": 0.0}, "noise.embed_level", "this run predicts no noise"),
        ({"noise__embed_level": False}, "noise.level_scale", "config.noise.embed_level is False"),
        (
            {"objective__contrastive__weight": 0.0, "objective__dense__weight": 1.0},
            "model.projector.outputs",
            "no objective of this run has a projector",
        ),
        (
            {"objective__contrastive__weight": 0.0, "accumulation__microbatches": 2},
            "accumulation.negatives",
            "no objective of this run compares images",
        ),
        ({"objective__denoising__weight": 0.0}, "noise.target", "this run predicts no noise"),
        (
            {"objective__denoising__weight": 0.0, "objective__reconstruction__weight": 0.0},
            "model.decoder.width",
            "no objective of this run reads the decoder",
        ),
        (
            {"objective__contrastive__weight": 0.0},
            "model.projector.hidden",
            "no objective of this run has a projector",
        ),
        ({}, "optimizer.ema_warmup", "config.optimizer.ema_decay is 0"),
        ({}, "accumulation.negatives", "config.accumulation.microbatches is 1"),
        ({"spike__steps": 0}, "spike.rewinds", "config.spike.steps is 0"),
        ({"probe__every_steps": 0}, "probe.k", "neither config.probe.every_steps nor"),
        ({"figures__every_steps": 0}, "figures.images", "config.figures.every_steps is not set"),
    ],
)
def test_given_key_without_effect_is_named(changes, key, reason):
    ((named, why),) = inactive(small_config(**changes), [key, "seed"])
    assert named == key and reason in why


def test_keys_with_an_effect_are_not_named():
    config = small_config(
        optimizer__ema_decay=0.9, accumulation__microbatches=2, probe__every_steps=2,
        figures__every_steps=2, data__disk_cache="/cache", augment__jitter=0.8, augment__blur=0.5,
    )  # fmt: skip
    keys = set(keys_of(RECIPE)) - {f"data.{name}" for name in OF_SOURCES}
    keys -= {"data.window", "data.shards_at_once", "data.examples"}
    assert not [key for key, _ in inactive(config, keys) if not key.startswith("objective.")]


def test_parts_of_a_mixture_and_sources_of_users_read_every_key():
    config = small_config()
    for source in ("mixture", "mine"):
        config.data.source = source
        assert not list(inactive(config, [f"data.{name}" for name in OF_SOURCES]))


@pytest.mark.parametrize("pattern", [rule[0] for rule in RULES])
def test_every_rule_is_about_keys_that_exist(pattern):
    assert any(re.fullmatch(pattern, key) for key in keys_of(RECIPE))
