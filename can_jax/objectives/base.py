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
    ``r // views``. A field is None where no active objective needs it.
    """

    projection: Float[Array, "images views width"] | None
    prediction: Float[Array, "rows patches pixels"] | None
    clean: Float[Array, "rows patches pixels"]
    noise: Float[Array, "rows patches pixels"] | None  # the noise to predict; visible places only
    hidden: Bool[Array, "rows patches"]
    labels: Int[Array, " images"] | None  # -1 where unknown


@dataclasses.dataclass(frozen=True)
class Objective:
    """A term of the total loss.

    Attributes:
        heads: the parts of the network it reads, as `can_jax.model.can.build` names them.
        loss: ``loss(arrays, **settings)`` gives the loss and what else to log of it.
        settings: the keys of its config block that ``loss`` takes.
    """

    heads: frozenset[str]
    loss: Callable[..., tuple[Loss, Metrics]]
    settings: tuple[str, ...] = ()


def at_least_float32(x: Array) -> Array:
    """Losses are computed in float32 whatever the compute type, and in float64 if given that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
