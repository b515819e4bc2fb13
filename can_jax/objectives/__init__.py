"""The objectives, which are the terms of the training loss, and their weighted sum.

To add an objective, register it in a recipe or in a module that ``--modules`` names:

    OBJECTIVES.register("entropy", Objective({"pooled"}, loss))

The new objective is configured in the block ``objective.entropy``; see docs/extend.md.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from can_jax.objectives import (
    barlow_twins,
    contrastive,
    denoising,
    dense,
    disentangle,
    koleo,
    latents,
    mec,
    reconstruction,
    siglip,
    vicreg,
)
from can_jax.objectives.base import Arrays, Loss, Metrics, Objective
from can_jax.utils.registry import Registry
from can_jax.utils.settings import Table

OBJECTIVES: Registry[Objective] = Registry("objective")
OBJECTIVES.register("contrastive", contrastive.OBJECTIVE)
OBJECTIVES.register("reconstruction", reconstruction.OBJECTIVE)
OBJECTIVES.register("denoising", denoising.OBJECTIVE)
OBJECTIVES.register("vicreg", vicreg.OBJECTIVE)
OBJECTIVES.register("barlow_twins", barlow_twins.OBJECTIVE)
OBJECTIVES.register("mec", mec.OBJECTIVE)
OBJECTIVES.register("siglip", siglip.OBJECTIVE)
OBJECTIVES.register("koleo", koleo.OBJECTIVE)
OBJECTIVES.register("disentangle", disentangle.OBJECTIVE)
OBJECTIVES.register("latents", latents.OBJECTIVE)
OBJECTIVES.register("dense", dense.OBJECTIVE)

Settings = dict[str, dict[str, Any]]
Heads = Mapping[str, Any]  # modules of flax.nnx


class Blocks(Mapping[str, Table]):
    """A live mapping from the name of each registered objective to its config block."""

    def __getitem__(self, name: str) -> Table:
        if name not in OBJECTIVES:
            raise KeyError(name)
        return OBJECTIVES.get(name).table

    def __iter__(self) -> Iterator[str]:
        return iter(OBJECTIVES)

    def __len__(self) -> int:
        return len(OBJECTIVES)


def active(settings: Settings) -> dict[str, Objective]:
    """Return the objectives with nonzero weight, by name; the others are not computed."""
    return {name: OBJECTIVES.get(name) for name, block in settings.items() if block["weight"]}


def reads(settings: Settings) -> frozenset[str]:
    """Return the fields of `Arrays` that the active objectives read."""
    return frozenset().union(*(objective.reads for objective in active(settings).values()))


def head_names(settings: Settings) -> dict[str, str]:
    """Return a dict from each active objective that has a head to the head's parameter name.

    The dict has the order in which the objectives were registered, on which the random
    initialization of the heads depends.
    """
    owners = active(settings)
    return {
        name: owners[name].head_name or f"{name}_head"
        for name in OBJECTIVES
        if name in owners and owners[name].head
    }


def total_loss(arrays: Arrays, settings: Settings, heads: Heads) -> tuple[Loss, Metrics]:
    """Compute the weighted sum of the active objectives, and all metrics.

    Args:
        arrays: The network outputs and targets of one step, over the global batch.
        settings: The config block of each objective, by name, including its ``weight``.
        heads: The head module of each active objective that has one, by objective name.

    Returns:
        The total loss, and a dict of metrics. The dict holds ``loss/NAME``, the unweighted loss of
            each objective, ``loss/total``, and the metrics that the objectives return.
    """
    metrics: Metrics = {}
    total = jnp.zeros(())
    for name, objective in active(settings).items():
        block = settings[name]
        given = (arrays,) if objective.head is None else (arrays, heads[name])
        loss, extra = objective.loss(*given, **{key: block[key] for key in objective.settings})
        metrics |= {f"loss/{name}": loss} | extra
        total += block["weight"] * loss
    return total, metrics | {"loss/total": total}
