"""What an objective is: the arrays it may look at, the heads it needs, and its function."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Loss = Float[Array, ""]
Metrics = dict[str, Float[Array, ""]]


class Arrays(NamedTuple):
    """One step as the objectives see it: what was computed, and what it is compared with.

    An image's views lie next to each other: row ``r`` is view ``r % views`` of image
    ``r // views``. A field is None where no objective that is asked for needs it.
    """

    projection: Float[Array, "images views width"] | None = None
    prediction: Float[Array, "rows patches pixels"] | None = None
    clean: Float[Array, "rows patches pixels"] | None = None
    noise: Float[Array, "rows patches pixels"] | None = None  # to predict; visible places only
    hidden: Bool[Array, "rows patches"] | None = None
    labels: Int[Array, " images"] | None = None  # -1 where unknown


@dataclasses.dataclass(frozen=True)
class Objective:
    """A term of the total loss.

    Attributes:
        heads: the parts of the network it reads, as `can_jax.model.can.build` names them.
        loss: ``loss(arrays, **settings)`` gives the loss and what else to log of it.
        settings: the keys of its config block that ``loss`` takes.
        relates_rows: whether it compares rows with each other, so that it is no mean over
            microbatches. It then reads projections and labels only.
    """

    heads: frozenset[str]
    loss: Callable[..., tuple[Loss, Metrics]]
    settings: tuple[str, ...] = ()
    relates_rows: bool = False


def at_least_float32(x: Array) -> Array:
    """Losses are computed in float32 whatever the compute type, and in float64 if given that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
