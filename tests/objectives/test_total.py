import inspect

import jax.numpy as jnp
import pytest
from flax import nnx

from can_jax.config.resolve import default_config
from can_jax.objectives import OBJECTIVES, Objective, active, head_names
from can_jax.objectives.base import Arrays, check_names
from can_jax.train.losses import total_loss
from can_jax.train.network import heads as network_heads
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Key, Number
from tests.helpers.configs import small_config


def test_total_is_the_weighted_sum_of_what_has_a_weight():
    clean = jnp.arange(24.0).reshape(2, 2, 6)
    arrays = Arrays(
        pooled=jnp.array([[[1.0, 0.0], [0.8, 0.6]]]),
        prediction=0.5 * clean,
        clean=clean,
        noise=clean,
        noise_scale=jnp.ones(2),
        hidden=jnp.array([[True, False], [False, True]]),
        labels=None,
    )
    heads = {"contrastive": lambda rows, train: rows}
    settings = small_config().objective.to_dict()
    total, metrics = total_loss(arrays, settings, heads)
    expected = sum(settings[name]["weight"] * metrics[f"loss/{name}"] for name in active(settings))
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    settings["denoising"]["weight"] = 0.0
    assert set(active(settings)) == {"contrastive", "reconstruction"}
    assert "loss/denoising" not in total_loss(arrays, settings, heads)[1]


def power_of_mean(arrays, power):
    return arrays.clean.mean() ** power, {}


POWER = {"power": Key(2, Number(0, 9), "The exponent.")}


def test_registered_objective_brings_its_config_block():
    with OBJECTIVES.temporarily("extra", Objective({"clean"}, power_of_mean, keys=POWER)):
        config = default_config()
        assert (config.objective.extra.weight, config.objective.extra.power) == (0.0, 2)
        settings = {name: {"weight": 0.0} for name in OBJECTIVES}
        settings["extra"] = {"weight": 3.0, "power": 2}
        total, metrics = total_loss(Arrays(clean=jnp.full((1, 1, 2), 2.0)), settings, {})
        assert (float(total), float(metrics["loss/extra"])) == (12.0, 4.0)
    assert "extra" not in default_config().objective


def test_own_check_applies_to_an_active_objective_only():
    def refuse(config):
        raise UserError(f"not with {config.model.size}")

    with OBJECTIVES.temporarily("extra", Objective({"clean"}, len, check=refuse)):
        assert small_config()
        with pytest.raises(UserError, match="not with"):
            small_config(objective__extra__weight=1.0)


@pytest.mark.parametrize("name", ["projector", "decoder"])
def test_two_heads_of_the_same_name_are_refused(name):
    own = Objective({"clean"}, len, head=lambda *_, **__: nnx.Module(), head_name=name)
    message = f"'extra' has head_name='{name}', the name of another"
    with OBJECTIVES.temporarily("extra", own), pytest.raises(UserError, match=message):
        network_heads(small_config(objective__extra__weight=1.0))


def test_objective_is_called_with_its_head_and_its_settings():
    class Scale(nnx.Module):
        def __init__(self):
            self.temperature = nnx.Param(jnp.float32(4.0))

    def loss(arrays, head, power):
        return head.temperature[...] * arrays.clean.mean() ** power, {}

    own = Objective({"clean"}, loss, keys=POWER, head=lambda config, width, **_: Scale())
    settings = {"extra": {"weight": 0.5, "power": 1}}
    with OBJECTIVES.temporarily("extra", own):
        assert head_names(settings) == {"extra": "extra_head"}
        total, _ = total_loss(Arrays(clean=jnp.ones((1, 1, 2))), settings, {"extra": Scale()})
    assert float(total) == 2.0


def test_settings_that_a_loss_needs_are_keys():
    with pytest.raises(
        ValueError, match="loss of an objective requires the parameter 'power': add a key"
    ):
        Objective({"clean"}, power_of_mean)
    with pytest.raises(ValueError, match=r"keys\['power'\]=2: each value must be a can_jax"):
        Objective({"clean"}, power_of_mean, keys={"power": 2})
    for name in OBJECTIVES:
        taken = inspect.signature(OBJECTIVES.get(name).loss).parameters
        assert set(OBJECTIVES.get(name).settings) <= set(taken)


@pytest.mark.parametrize("reads", [["pooled"], "pooled", ("pooled",), {1}, None])
def test_names_in_another_container_are_refused(reads):
    """The tests check annotations, so that no `Objective` can be made with them here."""
    with pytest.raises(ValueError, match="an objective with reads=.*: give a set of names"):
        check_names(reads)
    check_names({"pooled"})
    check_names(frozenset())
