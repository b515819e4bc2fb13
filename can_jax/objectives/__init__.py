"""The terms of the loss: pure functions of arrays, added up by their weights.

To add one: write `can_jax/objectives/NAME.py` with an `OBJECTIVE`, name it in `OBJECTIVES`, and
give it a block `objective.NAME` with a `weight` in `can_jax.config`.
"""

from typing import Any

from can_jax.objectives import contrastive, denoising, reconstruction
from can_jax.objectives.base import Arrays, Loss, Metrics, Objective

OBJECTIVES: dict[str, Objective] = {
    "contrastive": contrastive.OBJECTIVE,
    "reconstruction": reconstruction.OBJECTIVE,
    "denoising": denoising.OBJECTIVE,
}


def active(settings: dict[str, Any]) -> dict[str, Objective]:
    """The objectives with a weight; the others are not computed, nor are their heads built."""
    return {name: term for name, term in OBJECTIVES.items() if settings[name]["weight"]}


def total_loss(arrays: Arrays, settings: dict[str, Any]) -> tuple[Loss, Metrics]:
    """The weighted sum of the active objectives, and all there is to log of them.

    Args:
        arrays: one step of the global batch.
        settings: a config block for each objective, ``weight`` among its keys.
    """
    metrics: Metrics = {}
    total = None
    for name, objective in active(settings).items():
        block = settings[name]
        loss, extra = objective.loss(arrays, **{key: block[key] for key in objective.settings})
        metrics |= {f"loss/{name}": loss} | extra
        total = block["weight"] * loss + (0 if total is None else total)
    assert total is not None, "validated configurations have at least one weight"
    return total, metrics | {"loss/total": total}
