"""What an objective is: the arrays it reads, the batches it can work with, and its function."""

import dataclasses
from collections.abc import Callable, Set
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Loss = Float[Array, ""]
Metrics = dict[str, Float[Array, ""]]

# What an objective that relates rows can read: under microbatches these alone are there for the
# whole batch at a time.
OF_WHOLE_BATCH = frozenset({"tokens", "pooled", "projection", "labels"})


class Arrays(NamedTuple):
    """One step as the objectives see it: what was computed, and what it is compared with.

    An image's views lie next to each other: row ``r`` is view ``r % views`` of image
    ``r // views``. A field is None unless an active objective reads it.
    """

    tokens: Float[Array, "images views tokens width"] | None = None  # the encoder's, class first
    pooled: Float[Array, "images views width"] | None = None
    projection: Float[Array, "images views outputs"] | None = None
    prediction: Float[Array, "rows patches pixels"] | None = None
    clean: Float[Array, "rows patches pixels"] | None = None
    noise: Float[Array, "rows patches pixels"] | None = None  # to predict; visible places only
    hidden: Bool[Array, "rows patches"] | None = None
    labels: Int[Array, " images"] | None = None  # -1 where unknown


def check_names(attribute: str, value: Any, kind: Any, form: str) -> None:
    """Check that an attribute of an objective holds strings in a container of a kind.

    Raises:
        ValueError: It does not; says what form to give.
    """
    if not isinstance(value, kind) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"an objective with {attribute}={value!r}: give names in {form}")


@dataclasses.dataclass(frozen=True)
class Objective:
    """A term of the total loss.

    Attributes:
        reads: The fields of `Arrays` that ``loss`` reads. The network's heads that compute them are
            built, and no others.
        loss: ``loss(arrays, **settings)`` returns the loss and a dict of metrics to log.
        settings: The keys of its config block that ``loss`` takes.
        relates_rows: Whether it compares rows with each other, so that it is no mean over
            microbatches. It can then read `OF_WHOLE_BATCH` only.
        min_views: The fewest views of an image it can work with.
        min_images: The fewest images it can work with at a time.

    Raises:
        ValueError: An attribute is of another type, or it reads an unknown field, or one that does
            not go with ``relates_rows``.
    """

    reads: frozenset[str]
    loss: Callable[..., tuple[Loss, Metrics]]
    settings: tuple[str, ...] = ()
    relates_rows: bool = False
    min_views: int = 1
    min_images: int = 1

    def __post_init__(self) -> None:
        check_names("reads", self.reads, Set, "a set, such as {'pooled'}")
        check_names("settings", self.settings, tuple, "a tuple, such as ('power',)")
        known = OF_WHOLE_BATCH if self.relates_rows else set(Arrays._fields) - {"projection"}
        if unknown := sorted(self.reads - known):
            raise ValueError(
                f"an objective with relates_rows={self.relates_rows} cannot read {unknown[0]!r}; "
                f"it can read {', '.join(sorted(known))}"
            )


def at_least_float32(x: Array) -> Array:
    """Losses are computed in float32 whatever the compute type, and in float64 if given that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
