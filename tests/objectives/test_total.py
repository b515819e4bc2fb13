from collections.abc import Set

import jax.numpy as jnp
import pytest

from can_jax import objectives
from can_jax.objectives import Arrays, Objective, active, total_loss
from can_jax.objectives.base import check_names
from tests.helpers.configs import small_config


def test_total_is_the_weighted_sum_of_what_has_a_weight():
    clean = jnp.arange(24.0).reshape(2, 2, 6)
    arrays = Arrays(
        projection=jnp.array([[[1.0, 0.0], [0.8, 0.6]]]),
        prediction=0.5 * clean,
        clean=clean,
        noise=clean,
        hidden=jnp.array([[True, False], [False, True]]),
        labels=None,
    )
    settings = small_config().objective.to_dict()
    total, metrics = total_loss(arrays, settings)
    expected = sum(settings[name]["weight"] * metrics[f"loss/{name}"] for name in settings)
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    settings["denoising"]["weight"] = 0.0
    assert set(active(settings)) == {"contrastive", "reconstruction"}
    assert "loss/denoising" not in total_loss(arrays, settings)[1]


def test_new_objective_needs_one_entry_and_one_block(monkeypatch):
    extra = Objective(
        frozenset({"clean"}), lambda arrays, power: (arrays.clean.mean() ** power, {}), ("power",)
    )
    monkeypatch.setitem(objectives.OBJECTIVES, "extra", extra)
    settings = {name: {"weight": 0.0} for name in objectives.OBJECTIVES}
    settings["extra"] = {"weight": 3.0, "power": 2}
    arrays = Arrays(clean=jnp.full((1, 1, 2), 2.0))
    total, metrics = total_loss(arrays, settings)
    assert (float(total), float(metrics["loss/extra"])) == (12.0, 4.0)


@pytest.mark.parametrize("reads", [["pooled"], "pooled", ("pooled",), {1}, None])
def test_names_in_another_container_are_refused(reads):
    """The tests check annotations, so that no `Objective` can be made with them here."""
    with pytest.raises(ValueError, match="an objective with reads=.*: give names in a set"):
        check_names("reads", reads, Set, "a set")
    check_names("reads", {"pooled"}, Set, "a set")
    check_names("reads", frozenset(), Set, "a set")
    with pytest.raises(ValueError, match="settings='power': give names in a tuple"):
        check_names("settings", "power", tuple, "a tuple")
