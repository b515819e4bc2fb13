"""The terms of the loss, as pure functions of arrays, and their weighted sum.

To add an objective, register it in a recipe or in a module that ``--modules`` names:

    OBJECTIVES.register("entropy", Objective({"pooled"}, loss))

Its config block is ``objective.entropy``; see docs/extend.md.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from can_jax.objectives import (
    barlow_twins,
    contrastive,
    denoising,
    disentangle,
    koleo,
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

Settings = dict[str, dict[str, Any]]
Heads = Mapping[str, Any]  # modules of flax.nnx


class Blocks(Mapping[str, Table]):
    """The config blocks of all objectives by name, later registrations included."""

    def __getitem__(self, name: str) -> Table:
        if name not in OBJECTIVES:
            raise KeyError(name)
        return OBJECTIVES.get(name).table

    def __iter__(self) -> Iterator[str]:
        return iter(OBJECTIVES)

    def __len__(self) -> int:
        return len(OBJECTIVES)


def active(settings: Settings) -> dict[str, Objective]:
    """Return the objectives with nonzero weight; the others are skipped, as are their heads."""
    return {name: OBJECTIVES.get(name) for name, block in settings.items() if block["weight"]}


def reads(settings: Settings) -> frozenset[str]:
    """Return the fields of `Arrays` that the active objectives read."""
    return frozenset().union(*(objective.reads for objective in active(settings).values()))


def head_names(settings: Settings) -> dict[str, str]:
    """Return the parameter name of each head that an active objective owns, by objective.

    The heads are in the order of registration, on which the initial parameters depend.
    """
    owners = active(settings)
    return {
        name: owners[name].head_name or f"{name}_head"
        for name in OBJECTIVES
        if name in owners and owners[name].head
    }


def total_loss(arrays: Arrays, settings: Settings, heads: Heads) -> tuple[Loss, Metrics]:
    """Compute the weighted sum of the active objectives, and their metrics.

    Args:
        arrays: The outputs of the network and the targets of a step, over the global batch.
        settings: A config block for each objective to compute, ``weight`` among its keys.
        heads: The heads of the objectives that own one, by objective.

    Returns:
        The total loss, and the metrics: each loss without its weight, the total loss, and the
            metrics that the objectives return.
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
