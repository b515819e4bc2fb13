"""The class that defines an objective, and the arrays that objectives can read."""

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

# The arrays that an objective with ``relates_rows=True`` can read. With microbatches, only these
# arrays exist for the whole batch at once.
OF_WHOLE_BATCH = frozenset({"tokens", "pooled", "labels", "contents"})
VAR_KEYWORD = inspect.Parameter.VAR_KEYWORD
WEIGHT = Number(1e-6, 1e4, also=(0,))  # smaller gradients vanish beside Adam's epsilon


class Arrays(NamedTuple):
    """The network outputs and targets of one training step, from which losses are computed.

    In arrays with an axis ``rows``, row ``r`` is view ``r % views`` of image ``r // views``. A
    field is None unless an active objective reads it.

    Attributes:
        tokens: The output tokens of the encoder, class token first.
        pooled: The embedding of each view, pooled from the encoder's output tokens that
            ``objective.contrastive.pool`` selects.
        prediction: The decoder's prediction for each patch: the pixels of a masked patch, or the
            noise of a visible patch.
        decoded: The decoder's tokens before the output layers, class token first.
        teacher: The patch tokens that the moving average of the encoder computes from unmasked
            views without noise. No gradient flows through ``teacher``.
        clean: The normalized pixels of every patch, without the added noise.
        noise: The noise to predict for each patch, in the scale that ``noise.target`` selects.
            Losses use only the noise of visible patches.
        noise_scale: The factor by which ``noise`` is multiplied to obtain the noise in the input.
        hidden: A mask that is True for the patches that the encoder did not see.
        labels: The class label of each image; -1 if unknown.
        contents: An ID of each image's content, equal for duplicates; None unless
            ``objective.contrastive.exclude_copies`` is set.
    """

    tokens: Float[Array, "images views tokens width"] | None = None
    pooled: Float[Array, "images views width"] | None = None
    prediction: Float[Array, "rows patches pixels"] | None = None
    decoded: Float[Array, "rows tokens decoder_width"] | None = None
    teacher: Float[Array, "rows patches width"] | None = None
    clean: Float[Array, "rows patches pixels"] | None = None
    noise: Float[Array, "rows patches pixels"] | None = None
    noise_scale: Float[Array, " rows"] | None = None
    hidden: Bool[Array, "rows patches"] | None = None
    labels: Int[Array, " images"] | None = None
    contents: UInt32[Array, " images"] | None = None


def _accept(_: Any) -> None:
    """Accept any configuration; the default of `Objective.check`."""


def _never(_: Any) -> bool:
    """Return False, the default of `Objective.needs_labels`."""
    return False


@dataclasses.dataclass(frozen=True)
class Objective:
    """A term of the training loss, with its config keys, its checks and its head.

    Attributes:
        reads: The names of the fields of `Arrays` that ``loss`` reads. The decoder is built only if
            an active objective reads ``prediction`` or ``decoded``. ``teacher`` requires
            `optimizer.ema_decay`.
        loss: A function ``loss(arrays, **settings)`` that returns the loss and a dict of metrics to
            log. If the objective has a head, the signature is ``loss(arrays, head, **settings)``.
        weight: The default of the config key ``weight``. An objective with weight 0 is inactive.
        keys: The config keys of the block ``objective.NAME``, apart from ``weight``. Each key that
            is also the name of a parameter of ``loss`` is passed to ``loss``. If ``loss`` has a
            parameter ``**settings``, all keys are passed.
        head: A function ``head(config, width, **options)`` that builds the objective's own module,
            such as a projector or a learned temperature. ``width`` is the embedding dimension of
            the encoder. ``options`` holds the arguments ``dtype``, ``param_dtype`` and ``rngs`` of
            `flax.nnx` layers. ``head`` is None for an objective without parameters.
        head_name: The name of the head in the parameter tree, which no other head may have;
            ``NAME_head`` by default.
        relates_rows: Whether the loss compares images of the batch with each other. Such a loss of
            a batch is not the mean of the losses of its microbatches. If ``relates_rows`` is True,
            ``reads`` may hold only fields in `OF_WHOLE_BATCH`.
        min_views: The minimum number of views per image.
        min_images: The minimum number of images per batch, or per microbatch if the loss is
            computed separately for each microbatch.
        needs_labels: A function that takes the config block ``objective.NAME`` and returns whether
            the training data must have labels.
        check: A function that takes the complete configuration and raises `UserError` if this
            objective cannot be computed with it. ``check`` is called for active objectives only.

    Raises:
        ValueError: ``reads`` is not a set of field names that the objective can read, or a value in
            ``keys`` is not a `Key`. The error is also raised if ``keys`` contains ``weight``, or
            lacks a required parameter of ``loss``.
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
            if name == "weight":
                raise ValueError(
                    "the keys of an objective must not contain 'weight': set the default weight by "
                    "the argument `weight` of Objective"
                )
            if not isinstance(key, Key):
                raise ValueError(
                    f"an objective with keys[{name!r}]={key!r}: each value must be a "
                    "can_jax.utils.settings.Key"
                )
        for parameter in self._parameters():
            required = parameter.default is parameter.empty and parameter.kind is not VAR_KEYWORD
            if required and parameter.name not in self.keys:
                raise ValueError(
                    f"the loss of an objective requires the parameter {parameter.name!r}: add a "
                    "key of this name to the objective's keys"
                )

    @property
    def table(self) -> Table:
        """The keys of the config block, including ``weight``."""
        return {
            "weight": Key(self.weight, WEIGHT, "The weight of this loss in the total loss."),
            **self.keys,
        }

    @property
    def settings(self) -> tuple[str, ...]:
        """The keys of the config block that are passed to ``loss``."""
        parameters = self._parameters()
        if any(parameter.kind is VAR_KEYWORD for parameter in parameters):
            return tuple(self.keys)
        return tuple(p.name for p in parameters if p.name in self.keys)

    def _parameters(self) -> list[inspect.Parameter]:
        """Return the parameters of ``loss``, except ``arrays`` and ``head``."""
        given = 1 if self.head is None else 2
        return [
            parameter
            for parameter in list(inspect.signature(self.loss).parameters.values())[given:]
            if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
        ]


def check_names(value: Any) -> None:
    """Check that ``value``, the argument ``reads`` of an objective, is a set of strings.

    Raises:
        ValueError: The value is not a set, or one of its elements is not a string.
    """
    if not isinstance(value, Set) or not all(isinstance(name, str) for name in value):
        raise ValueError(
            f"an objective with reads={value!r}: give a set of names, such as {{'pooled'}}"
        )


def at_least_float32(x: Array) -> Array:
    """Cast an array to float32, or return a float64 array unchanged.

    Losses are computed in float32 or float64, even if ``model.dtype`` is bfloat16.
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
