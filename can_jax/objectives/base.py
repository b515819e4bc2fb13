"""The interface of an objective: the arrays it reads, its requirements and its loss function."""

import dataclasses
from collections.abc import Callable, Set
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Loss = Float[Array, ""]
Metrics = dict[str, Float[Array, ""]]

# The arrays that an objective which relates rows can read. With microbatches, no others are
# computed for the whole batch at a time.
OF_WHOLE_BATCH = frozenset({"tokens", "pooled", "projection", "labels"})


class Arrays(NamedTuple):
    """The arrays of one step that objectives read: outputs of the network, and targets.

    The views of an image are adjacent: row ``r`` is view ``r % views`` of image ``r // views``. A
    field is None unless an active objective reads it.

    Attributes:
        tokens: The encoder's output, class token first.
        pooled: The pooled embeddings.
        projection: The projected embeddings.
        prediction: The decoder's prediction of every patch.
        clean: The pixels of every patch, normalized, without noise.
        noise: The noise to predict; only that of visible patches counts.
        hidden: True for the patches that the encoder did not see.
        labels: The label of each image, -1 where unknown.
    """

    tokens: Float[Array, "images views tokens width"] | None = None
    pooled: Float[Array, "images views width"] | None = None
    projection: Float[Array, "images views outputs"] | None = None
    prediction: Float[Array, "rows patches pixels"] | None = None
    clean: Float[Array, "rows patches pixels"] | None = None
    noise: Float[Array, "rows patches pixels"] | None = None
    hidden: Bool[Array, "rows patches"] | None = None
    labels: Int[Array, " images"] | None = None


def check_names(attribute: str, value: Any, kind: Any, form: str) -> None:
    """Check that an attribute of an objective is a container of strings.

    Args:
        attribute: The name of the attribute, for the message.
        value: The value to check.
        kind: The required type of the container.
        form: A description of the required form, for the message.

    Raises:
        ValueError: The value is of another type, or holds something else.
    """
    if not isinstance(value, kind) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"an objective with {attribute}={value!r}: give names in {form}")


@dataclasses.dataclass(frozen=True)
class Objective:
    """A term of the total loss.

    Attributes:
        reads: The fields of `Arrays` that ``loss`` reads. The network's heads that compute them are
            built, and no others.
        loss: A function; ``loss(arrays, **settings)`` returns the loss and a dict of metrics to
            log.
        settings: The keys of the objective's config block that ``loss`` takes.
        relates_rows: Whether the loss compares rows with each other, so that it is no mean over
            microbatches. It can then read the fields of `OF_WHOLE_BATCH` only.
        min_views: The minimum number of views per image.
        min_images: The minimum number of images in a batch or microbatch.

    Raises:
        ValueError: An attribute has a wrong type, or ``reads`` holds an unknown field or one that
            ``relates_rows`` excludes.
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
        readable = OF_WHOLE_BATCH if self.relates_rows else set(Arrays._fields) - {"projection"}
        if unknown := sorted(self.reads - readable):
            raise ValueError(
                f"an objective with relates_rows={self.relates_rows} cannot read {unknown[0]!r}; "
                f"it can read {', '.join(sorted(readable))}"
            )


def at_least_float32(x: Array) -> Array:
    """Cast to float32, or keep float64. Losses are computed in it, whatever the compute type."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
