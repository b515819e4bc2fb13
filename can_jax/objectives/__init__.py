"""The objectives, which are the terms of the training loss.

To add an objective, register it in a recipe or in a module that ``--modules`` names:

    OBJECTIVES.register("entropy", Objective({"pooled"}, loss))

An objective with the name ``entropy`` is configured in the block ``objective.entropy``; see
docs/extend.md.
"""

from collections.abc import Iterator, Mapping
from typing import Any

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
from can_jax.objectives.base import Objective
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
    """A mapping from the name of each objective registered so far to its config block."""

    def __getitem__(self, name: str) -> Table:
        if name not in OBJECTIVES:
            raise KeyError(name)
        return OBJECTIVES.get(name).table

    def __iter__(self) -> Iterator[str]:
        return iter(OBJECTIVES)

    def __len__(self) -> int:
        return len(OBJECTIVES)


def active(settings: Settings) -> dict[str, Objective]:
    """Return the objectives with nonzero weight, by name; objectives with zero weight are not
    computed."""
    return {name: OBJECTIVES.get(name) for name, block in settings.items() if block["weight"]}


def reads(settings: Settings) -> frozenset[str]:
    """Return the fields of `Arrays` that the active objectives read."""
    return frozenset().union(*(objective.reads for objective in active(settings).values()))


def head_names(settings: Settings) -> dict[str, str]:
    """Return, for each active objective that has a head, the head's name in the parameter tree.

    The heads are in the order in which their objectives were registered, since their random
    initialization depends on the order.
    """
    owners = active(settings)
    return {
        name: owners[name].head_name or f"{name}_head"
        for name in OBJECTIVES
        if name in owners and owners[name].head
    }
