"""Learning-rate schedule and AdamW, with what holds for some parameters only."""

import re
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from can_jax.distributed.sharding_rules import decay_mask, path_name
from can_jax.utils.errors import UserError

REFERENCE_BATCH = 256  # images, for which `optimizer.learning_rate` is stated


def peak_learning_rate(config: ConfigDict) -> float:
    """``optimizer.learning_rate`` scaled linearly to the global batch (arXiv 1706.02677)."""
    return config.optimizer.learning_rate * config.batch_size / REFERENCE_BATCH


def learning_rate_schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear from 0 to ``peak`` in ``warmup_steps``, then half a cosine to 0 at ``total_steps``.

    A run that ends before its warm-up does sees the warm-up's start only.
    """
    warmup = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    decay = optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1))
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW without its learning rate, which the step applies, so that what is logged is what was
    used and a skipped step does not shift the schedule. Frozen parameters have no moments."""
    settings = config.optimizer
    update = optax.chain(
        optax.scale_by_adam(
            settings.beta1, settings.beta2, settings.epsilon, mu_dtype=settings.moment_dtype
        ),
        optax.add_decayed_weights(settings.weight_decay, mask=decay_mask),
    )
    if scales := settings.learning_rate_scale:

        def scaled(updates: Any, _: Any) -> Any:
            factors = by_pattern(updates, dict(scales), 1.0)
            return jax.tree.map(lambda update, factor: factor * update, updates, factors)

        update = optax.chain(update, optax.stateless(scaled))
    if settings.clip_norm is not None:
        update = clipped(update, settings.clip_norm)
    if not settings.freeze:
        return update
    kinds = {"trained": update, "frozen": optax.set_to_zero()}
    frozen = dict.fromkeys(settings.freeze, "frozen")
    return optax.partition(kinds, lambda parameters: by_pattern(parameters, frozen, "trained"))


def clipped(
    transformation: optax.GradientTransformation, norm: float
) -> optax.GradientTransformation:
    """Return a transformation whose gradients are first scaled down to a global norm.

    Its state is that of the transformation given, so that a run may change the limit when it
    resumes.

    Args:
        transformation: Of the gradients.
        norm: The largest global norm that is left as it is; above 0.
    """
    clip = optax.clip_by_global_norm(norm)

    def update(gradients: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        gradients, _ = clip.update(gradients, clip.init(parameters))
        return transformation.update(gradients, state, parameters)

    return optax.GradientTransformation(transformation.init, update)


def by_pattern(parameters: Any, values: dict[str, Any], default: Any) -> Any:
    """For each parameter the value of the first pattern that is found in its path."""

    def value(path: tuple[Any, ...], _: Any) -> Any:
        name = path_name(path)
        return next((v for pattern, v in values.items() if re.search(pattern, name)), default)

    return jax.tree_util.tree_map_with_path(value, parameters)


def check_patterns(config: ConfigDict, parameters: Any) -> None:
    """Every pattern is found in the path of a parameter, and something is left to train.

    Raises:
        UserError: it is not.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(parameters)]
    settings = config.optimizer
    scaled = [pattern for pattern, _ in settings.learning_rate_scale]
    for key, patterns in (("learning_rate_scale", scaled), ("freeze", settings.freeze)):
        for pattern in patterns:
            try:
                found = any(re.search(pattern, name) for name in names)
            except re.error as error:
                raise UserError(f"config.optimizer.{key}: {pattern!r}: {error}") from error
            if not found:
                raise UserError(
                    f"config.optimizer.{key}: {pattern!r} is found in no parameter's path; paths "
                    f"are such as {names[0]} and {names[-1]}"
                )
    factors = jax.tree.leaves(by_pattern(parameters, dict(settings.learning_rate_scale), 1.0))
    frozen = [any(re.search(pattern, name) for pattern in settings.freeze) for name in names]
    if all(fixed or not factor for fixed, factor in zip(frozen, factors, strict=True)):
        key = "freeze" if any(frozen) else "learning_rate_scale"
        raise UserError(f"config.optimizer.{key} leaves nothing to train")
