"""The terms of the loss, as pure functions of arrays, and their weighted sum.

To add one, write `can_jax/objectives/NAME.py` with an `OBJECTIVE` and add that to `OBJECTIVES`.
Then add a block `objective.NAME` with a `weight` to `can_jax.config.defaults`.
"""

from typing import Any

import jax.numpy as jnp

from can_jax.objectives import contrastive, denoising, reconstruction
from can_jax.objectives.base import Arrays, Loss, Metrics, Objective

OBJECTIVES: dict[str, Objective] = {
    "contrastive": contrastive.OBJECTIVE,
    "reconstruction": reconstruction.OBJECTIVE,
    "denoising": denoising.OBJECTIVE,
}

Settings = dict[str, dict[str, Any]]


def active(settings: Settings) -> dict[str, Objective]:
    """Return the objectives with nonzero weight; the others are skipped, as are their heads."""
    return {name: OBJECTIVES[name] for name, block in settings.items() if block["weight"]}


def reads(settings: Settings) -> frozenset[str]:
    """Return the fields of `Arrays` that the active objectives read."""
    return frozenset().union(*(objective.reads for objective in active(settings).values()))


def total_loss(arrays: Arrays, settings: Settings) -> tuple[Loss, Metrics]:
    """Compute the weighted sum of the active objectives, and their metrics.

    Args:
        arrays: The arrays of a step, over the global batch.
        settings: A config block for each objective to compute, ``weight`` among its keys.

    Returns:
        The total loss, and the metrics: every loss without its weight, the total, and those that
        the objectives return.
    """
    metrics: Metrics = {}
    total = jnp.zeros(())
    for name, objective in active(settings).items():
        block = settings[name]
        loss, extra = objective.loss(arrays, **{key: block[key] for key in objective.settings})
        metrics |= {f"loss/{name}": loss} | extra
        total += block["weight"] * loss
    return total, metrics | {"loss/total": total}
