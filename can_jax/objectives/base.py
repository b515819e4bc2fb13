"""The interface of an objective: the arrays it reads, its requirements and its loss function."""

import dataclasses
import inspect
from collections.abc import Callable, Set
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from can_jax.utils.settings import Key, Number, Table

Loss = Float[Array, ""]
Metrics = dict[str, Float[Array, ""]]

# The arrays that an objective which relates rows can read. With microbatches, other arrays are
# computed for one microbatch at a time only.
OF_WHOLE_BATCH = frozenset({"tokens", "pooled", "labels", "contents"})
VAR_KEYWORD = inspect.Parameter.VAR_KEYWORD
WEIGHT = Number(1e-6, 1e4, also=(0,))  # smaller gradients vanish beside Adam's epsilon


class Arrays(NamedTuple):
    """The arrays of one step that objectives read: outputs of the network, and targets.

    The views of an image are adjacent: row ``r`` is view ``r % views`` of image ``r // views``. A
    field is None unless an active objective reads it.

    Attributes:
        tokens: The encoder's output, class token first.
        pooled: The pooled embeddings.
        prediction: The decoder's prediction of every patch.
        clean: The pixels of every patch, normalized, without noise.
        noise: The noise to predict, on the scale of `noise.target`; only that of visible patches
            counts.
        noise_scale: The factor of each row that scales ``noise`` to the noise of the input.
        hidden: True for the patches that the encoder did not see.
        labels: The label of each image, -1 where unknown.
        contents: A number of each image that copies of it share; None unless
            ``objective.contrastive.exclude_copies`` is set.
    """

    tokens: Float[Array, "images views tokens width"] | None = None
    pooled: Float[Array, "images views width"] | None = None
    prediction: Float[Array, "rows patches pixels"] | None = None
    clean: Float[Array, "rows patches pixels"] | None = None
    noise: Float[Array, "rows patches pixels"] | None = None
    noise_scale: Float[Array, " rows"] | None = None
    hidden: Bool[Array, "rows patches"] | None = None
    labels: Int[Array, " images"] | None = None
    contents: UInt32[Array, " images"] | None = None


def _accept(_: Any) -> None:
    """Accept any configuration."""


def _never(_: Any) -> bool:
    """Return False for any settings."""
    return False


@dataclasses.dataclass(frozen=True)
class Objective:
    """A term of the total loss, with its config block, its checks and the head that it owns.

    Attributes:
        reads: The fields of `Arrays` that ``loss`` reads. The decoder is built only if an active
            objective reads ``prediction``.
        loss: A function; ``loss(arrays, **settings)`` returns the loss and a dict of metrics to
            log. If the objective has a head, it is ``loss(arrays, head, **settings)``.
        weight: The default weight, 0 if omitted. An objective with weight 0 is inactive until a
            recipe sets its weight.
        keys: The other keys of the config block ``objective.NAME``. Those that ``loss`` has as
            parameters are passed to it.
        head: A function that builds the module of the objective's own parameters, such as a
            projector or a learned temperature: ``head(config, width, **options)``. ``width`` is
            that of the encoder; ``options`` are ``dtype``, ``param_dtype`` and ``rngs``, which each
            layer of `flax.nnx` takes. None for an objective without parameters.
        head_name: The name of the head among the parameters; ``NAME_head`` by default.
        relates_rows: Whether the loss compares rows with each other, so that it is not a mean over
            microbatches. Then ``reads`` may hold fields of `OF_WHOLE_BATCH` only.
        min_views: The minimum number of views per image.
        min_images: The minimum number of images in a batch or microbatch.
        needs_labels: A function of the config block that returns whether the data must have labels.
        check: A function of the whole configuration that raises `UserError` if this objective
            cannot be computed with it. It is called for active objectives only.

    Raises:
        ValueError: An attribute has a wrong type, ``reads`` holds an unknown field or one that
            ``relates_rows`` excludes, or ``loss`` requires a parameter that is not in ``keys``.
    """

    reads: Set[str]
    loss: Callable[..., tuple[Loss, Metrics]]
    _: dataclasses.KW_ONLY
    weight: float = 0.0
    keys: Table = dataclasses.field(default_factory=dict)
    head: Callable[..., nnx.Module] | None = None
    head_name: str = ""
    relates_rows: bool = False
    min_views: int = 1
    min_images: int = 1
    needs_labels: Callable[[Any], bool] = _never
    check: Callable[[Any], None] = _accept

    def __post_init__(self) -> None:
        check_names(self.reads)
        readable = OF_WHOLE_BATCH if self.relates_rows else set(Arrays._fields)
        if unknown := sorted(self.reads - readable):
            raise ValueError(
                f"an objective with relates_rows={self.relates_rows} cannot read {unknown[0]!r}; "
                f"it can read {', '.join(sorted(readable))}"
            )
        for name, key in self.keys.items():
            if not isinstance(key, Key) or name == "weight":
                raise ValueError(
                    f"an objective with keys[{name!r}]={key!r}: give a can_jax.utils.settings.Key; "
                    "the weight has a field of its own"
                )
        for parameter in self._parameters():
            required = parameter.default is parameter.empty and parameter.kind is not VAR_KEYWORD
            if required and parameter.name not in self.keys:
                raise ValueError(
                    f"an objective whose loss requires {parameter.name!r}: add it to the "
                    "objective's keys"
                )

    @property
    def table(self) -> Table:
        """The keys of the config block."""
        return {
            "weight": Key(self.weight, WEIGHT, "Weight of this loss in the total."),
            **self.keys,
        }

    @property
    def settings(self) -> tuple[str, ...]:
        """The keys of the config block that ``loss`` takes."""
        parameters = self._parameters()
        if any(parameter.kind is VAR_KEYWORD for parameter in parameters):
            return tuple(self.keys)
        return tuple(p.name for p in parameters if p.name in self.keys)

    def _parameters(self) -> list[inspect.Parameter]:
        """Return the parameters of ``loss`` after the arrays and the head."""
        given = 1 if self.head is None else 2
        return [
            parameter
            for parameter in list(inspect.signature(self.loss).parameters.values())[given:]
            if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
        ]


def check_names(value: Any) -> None:
    """Check that ``reads`` is a set of strings; a string alone would be iterable, too.

    Raises:
        ValueError: The value is of another type, or holds something else.
    """
    if not isinstance(value, Set) or not all(isinstance(name, str) for name in value):
        raise ValueError(
            f"an objective with reads={value!r}: give a set of names, such as {{'pooled'}}"
        )


def at_least_float32(x: Array) -> Array:
    """Cast to float32, or keep float64; losses use this type for any ``model.dtype``."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
