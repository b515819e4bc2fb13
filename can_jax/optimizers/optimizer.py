"""The optimizer of a run: gradient clipping, frozen parameters and per-parameter learning rates."""

import re
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from can_jax.distributed.sharding_rules import named_leaves, path_name
from can_jax.optimizers.transforms import transform
from can_jax.utils.errors import UserError

REFERENCE_BATCH = 256  # the batch size to which `optimizer.learning_rate` refers


def peak_learning_rate(config: ConfigDict) -> float:
    """Return ``optimizer.learning_rate * batch_size / 256`` (linear scaling, arXiv 1706.02677)."""
    return config.optimizer.learning_rate * config.batch_size / REFERENCE_BATCH


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Return the configured optimizer without the multiplication by the learning rate.

    The train step multiplies the update by the learning rate, and logs this learning rate. A
    skipped update does not delay the schedule. Frozen parameters have no optimizer state.
    """
    settings = config.optimizer
    update = transform(settings)
    if scales := settings.learning_rate_scale:

        def scaled(updates: Any, _: Any) -> Any:
            factors = by_pattern(updates, dict(scales), 1.0)
            return jax.tree.map(lambda update, factor: factor * update, updates, factors)

        update = optax.chain(update, optax.stateless(scaled))
    if settings.clip_norm is not None:
        update = clipped(update, settings.clip_norm)
    if not settings.freeze:
        return update
    transforms = {"trained": update, "frozen": optax.set_to_zero()}
    frozen = dict.fromkeys(settings.freeze, "frozen")
    return optax.partition(transforms, lambda tree: by_pattern(tree, frozen, "trained"))


def clipped(
    transformation: optax.GradientTransformation, norm: float
) -> optax.GradientTransformation:
    """Return a transformation that clips gradients by their global norm, then applies
    ``transformation``.

    Clipping adds no optimizer state, so a resumed run may change ``norm`` or turn clipping on or
    off.

    Args:
        transformation: The transformation applied to the clipped gradients.
        norm: The maximum global norm of the gradients; positive.
    """
    clip = optax.clip_by_global_norm(norm)

    def update(gradients: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        gradients, _ = clip.update(gradients, clip.init(parameters))
        return transformation.update(gradients, state, parameters)

    return optax.GradientTransformation(transformation.init, update)


def by_pattern(parameters: Any, values: dict[str, Any], default: Any) -> Any:
    """Return a tree that holds, for each parameter, the value of the first pattern that matches its
    path.

    Args:
        parameters: A tree of parameters, whose paths look like ``encoder/norm/scale``.
        values: A dict from regular expressions to values. An expression may match any part of a
            path.
        default: The value for parameters that no pattern matches.
    """

    def value(path: tuple[Any, ...], _: Any) -> Any:
        name = path_name(path)
        return next((v for pattern, v in values.items() if re.search(pattern, name)), default)

    return jax.tree_util.tree_map_with_path(value, parameters)


def check_patterns(config: ConfigDict, parameters: Any) -> None:
    """Check the patterns of ``optimizer.freeze`` and ``optimizer.learning_rate_scale``.

    Raises:
        UserError: A pattern is not a valid regular expression, a pattern matches no parameter, or
            every parameter is frozen or has a learning rate of 0.
    """
    names = list(named_leaves(parameters))
    settings = config.optimizer
    scaled = [pattern for pattern, _ in settings.learning_rate_scale]
    for key, patterns in (("learning_rate_scale", scaled), ("freeze", settings.freeze)):
        for pattern in patterns:
            try:
                matches = any(re.search(pattern, name) for name in names)
            except re.error as error:
                raise UserError(f"config.optimizer.{key}: {pattern!r}: {error}") from error
            if not matches:
                raise UserError(
                    f"config.optimizer.{key}: {pattern!r} matches no parameter's path; examples of "
                    f"paths are {names[0]} and {names[-1]}"
                )
    factors = jax.tree.leaves(by_pattern(parameters, dict(settings.learning_rate_scale), 1.0))
    frozen = [any(re.search(pattern, name) for pattern in settings.freeze) for name in names]
    if all(fixed or not factor for fixed, factor in zip(frozen, factors, strict=True)):
        key = "freeze" if any(frozen) else "learning_rate_scale"
        raise UserError(f"config.optimizer.{key} leaves nothing to train: remove a pattern")
