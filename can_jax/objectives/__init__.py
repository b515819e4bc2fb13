"""The terms of the loss: pure functions of arrays, added up by their weights.

To add one: write `can_jax/objectives/NAME.py` with an `OBJECTIVE`, name it in `OBJECTIVES`, and
give it a block `objective.NAME` with a `weight` in `can_jax.config.defaults`.
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
    """The objectives with a weight; the others are not computed, nor are their heads built."""
    return {name: OBJECTIVES[name] for name, block in settings.items() if block["weight"]}


def reads(settings: Settings) -> frozenset[str]:
    """Return the fields of `Arrays` that the active objectives read."""
    return frozenset().union(*(objective.reads for objective in active(settings).values()))


def total_loss(arrays: Arrays, settings: Settings) -> tuple[Loss, Metrics]:
    """The weighted sum of the active objectives, and all there is to log of them.

    Args:
        arrays: one step of the global batch.
        settings: a config block for each objective to compute, ``weight`` among its keys.
    """
    metrics: Metrics = {}
    total = jnp.zeros(())
    for name, objective in active(settings).items():
        block = settings[name]
        loss, extra = objective.loss(arrays, **{key: block[key] for key in objective.settings})
        metrics |= {f"loss/{name}": loss} | extra
        total += block["weight"] * loss
    return total, metrics | {"loss/total": total}
