"""The short form of `python -m tests.torture.settings`."""

import dataclasses
import math
import random

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from can_jax.train.pretrain import prepare
from can_jax.utils.settings import flat_keys
from tests.torture.settings import LEFT_OUT, RECIPE, draw_many, drawn_changes, tiny, trained


def found_by(draws, seed, monkeypatch):
    """The draws that were neither refused by key nor trained."""
    chosen = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: chosen)
    found = []

    def note(changes, result, seconds):
        if not result.startswith(("refused", "trained")):
            found.append((result, changes))

    draw_many(draws, seed, note)
    return found


@pytest.mark.parametrize(
    ("draws", "seed"),
    [(1, 0), *(pytest.param(3, seed, marks=pytest.mark.slow) for seed in range(4))],
)
def test_settings_that_pass_the_checks_train(monkeypatch, draws, seed):
    assert not found_by(draws, seed, monkeypatch)


@pytest.mark.slow
def test_many_settings_that_pass_the_checks_train(monkeypatch):
    assert not found_by(40, 4, monkeypatch)


def test_every_key_is_drawn_within_its_table():
    rng, seen = random.Random(0), set()
    keys = dict(flat_keys(RECIPE))
    for _ in range(400):
        for name, value in drawn_changes(rng, 8).items():
            assert keys[name].accepts(value) or name.startswith("optimizer.freeze"), (name, value)
            seen.add(name)
    # Of data that is not there.
    assert keys.keys() - seen == {*LEFT_OUT, "data.image_key", "data.label_key", "data.mixture"}


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "result"), [(math.nan, "not finite"), (0.0, "did nothing")])
def test_what_does_not_train_is_found(tmp_path, monkeypatch, rate, result):
    chosen = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: chosen)
    training = prepare(tiny(), epath.Path(tmp_path))
    step = dataclasses.replace(training.step, schedule=lambda _: jnp.float32(rate))
    assert trained(dataclasses.replace(training, step=step)).startswith(result)
