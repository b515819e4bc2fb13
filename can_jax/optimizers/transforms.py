"""The optimizers that `config.optimizer.name` can select: registered ones and those of optax."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from can_jax.optimizers import by_layer
from can_jax.optimizers.weight_decay import decay_mask
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.nearest import nearest
from can_jax.utils.registry import Registry

OPTIMIZERS: Registry[Callable[..., optax.GradientTransformation]] = Registry("optimizer")
# The keys of the config block `optimizer`, and the parameters of optax that they set.
PARAMETERS = {"beta1": "b1", "beta2": "b2", "epsilon": "eps", "moment_dtype": "mu_dtype"}
# Adafactor adds its `eps` to the square of each gradient, not to the root of the second moment.
OTHER_EPSILON = ("adafactor",)
MASKS = ("mask", "weight_decay_mask")
# Optimizers whose moments and updates are finite if the gradient's norm is: moments are means of
# gradients or of their squares, and no element of an update exceeds 1 / sqrt(1 - beta2).
BOUNDED = ("adamw", "lion")


@OPTIMIZERS.register("adamw")
def adamw(
    b1: float, b2: float, eps: float, mu_dtype: Any, weight_decay: float, mask: Any
) -> optax.GradientTransformation:
    """Return AdamW (arXiv 1711.05101) without the multiplication by the learning rate."""
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
        optax.add_decayed_weights(weight_decay, mask=mask),
    )


OPTIMIZERS.register("lamb", by_layer.lamb)
OPTIMIZERS.register("lars", by_layer.lars)
OPTIMIZERS.register("muon", by_layer.muon)


def find_optimizer(name: Any) -> Callable[..., optax.GradientTransformation] | None:
    """Return the function that builds the named optimizer, or None if the name is unknown.

    Registered names take precedence over functions of `optax` and `optax.contrib`. A function of
    optax qualifies if it has a parameter ``learning_rate``.
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS.get(name)
    for module in (optax, optax.contrib):
        function = getattr(module, name, None) if isinstance(name, str) else None
        if inspect.isfunction(function) and "learning_rate" in parameters_of(function):
            return function
    return None


def is_bounded(settings: Any) -> bool:
    """Return whether the optimizer is known to turn finite gradients into finite updates.

    Args:
        settings: The config block ``optimizer``.
    """
    return settings.name in BOUNDED and not settings.options


def unknown_optimizer(name: str) -> UserError:
    """Return the error for an unknown ``optimizer.name``, which suggests a similar name or valid
    names."""
    names = [*OPTIMIZERS, *(name for name in dir(optax) if find_optimizer(name))]
    near = nearest(name, names)
    hint = f"did you mean {near!r}?" if near else "valid names are, e.g., adamw, lion and sgd"
    return UserError(
        f"config.optimizer.name={name!r} is neither registered nor an optimizer of optax; {hint}"
    )


def parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a function's parameters."""
    return frozenset(inspect.signature(function).parameters)


def unused_settings(settings: Any) -> list[str]:
    """Return the keys among `PARAMETERS` for which the configured optimizer has no parameter.

    Args:
        settings: The config block ``optimizer``, whose ``name`` must be valid.
    """
    function = find_optimizer(settings.name)
    assert function is not None
    return [key for key in PARAMETERS if key not in _set_by(settings, function)]


def _set_by(settings: Any, function: Callable[..., Any]) -> dict[str, str]:
    """Return the entries of `PARAMETERS` that set a parameter of the optimizer's function."""
    taken = parameters_of(function)
    other = {"epsilon"} if settings.name in OTHER_EPSILON else set()
    return {key: name for key, name in PARAMETERS.items() if name in taken and key not in other}


def transform(settings: Any) -> optax.GradientTransformation:
    """Return the configured optimizer with weight decay, but without the multiplication by the
    learning rate.

    The train step multiplies the update by the learning rate. Config keys such as ``beta1`` set the
    optimizer's parameters, such as ``b1``. Values in ``optimizer.options`` take precedence over
    config keys such as ``beta1``.

    If the optimizer has no parameter ``weight_decay``, decoupled weight decay is added to its
    update. The mask `decay_mask` excludes biases, scales, tokens and position embeddings from
    weight decay. Some optimizers, such as `optax.contrib.prodigy`, have a parameter
    ``weight_decay`` but none for a mask; their weight decay applies to all parameters.

    Args:
        settings: The config block ``optimizer``.

    Raises:
        UserError: ``optimizer.name`` is unknown, ``optimizer.options`` are not valid for the
            optimizer, or the named function does not return an `optax.GradientTransformation`.
    """
    made, taken = _with_rate(settings, 1.0)
    if "learning_rate" in taken:
        made = _negated(made)
    if "weight_decay" not in taken and settings.weight_decay:
        decay = optax.add_decayed_weights(settings.weight_decay, mask=decay_mask)
        made = optax.chain(made, decay)
    return made


def check_updates(settings: Any) -> None:
    """Check that the updates are proportional to the learning rate, as the train step requires.

    The check computes a few updates of random parameters with two learning rates. Optimizers
    without a parameter ``learning_rate`` are not checked.

    Args:
        settings: The config block ``optimizer``, whose ``name`` must be valid.

    Raises:
        UserError: The updates are not proportional to the learning rate, or the optimizer requires
            further arguments, such as the loss.
    """
    function = find_optimizer(settings.name)
    assert function is not None
    if "learning_rate" not in parameters_of(function):
        return
    random = np.random.default_rng(0)
    shapes = {"kernel": (2, 2), "bias": (2,)}
    trees = [
        {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(6)
    ]

    def last_update(rate: float) -> jax.Array:
        made, _ = _with_rate(settings, rate)
        state = made.init(trees[0])
        for gradients, parameters in zip(trees[:3], trees[3:], strict=True):
            updates, state = made.update(gradients, state, parameters)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(updates)])

    try:
        full, half = jax.jit(lambda: (last_update(1.0), last_update(0.5)))()
    except UserError:
        raise
    except Exception as error:  # A library's or a user's function can raise errors of any kind.
        raise UserError(
            f"config.optimizer.name={settings.name!r}: {one_line(error)}. The train step passes "
            "only gradients, state and parameters; choose another optimizer, such as adamw"
        ) from error
    if not np.allclose(2 * half, full, atol=1e-3 * np.abs(full).max()):
        raise UserError(
            f"config.optimizer.name={settings.name!r}: the updates are not proportional to the "
            "learning rate. The train step requires proportional updates; choose another "
            "optimizer, such as adamw"
        )


def _with_rate(settings: Any, rate: float) -> tuple[optax.GradientTransformation, frozenset[str]]:
    """Return the optimizer with the learning rate ``rate``, and the parameter names of the function
    that builds it."""
    function = find_optimizer(settings.name)
    if function is None:
        raise unknown_optimizer(settings.name)
    taken = parameters_of(function)
    own = _set_by(settings, function)
    arguments: dict[str, Any] = {name: settings[key] for key, name in own.items()}
    if "moment_dtype" in own:
        arguments["mu_dtype"] = jnp.dtype(settings.moment_dtype)
    arguments |= {"learning_rate": rate, "weight_decay": settings.weight_decay}
    arguments |= dict.fromkeys(MASKS, decay_mask)
    arguments = {name: value for name, value in arguments.items() if name in taken}
    try:
        made = function(**arguments | dict(settings.options))
    except Exception as error:  # A library's or a user's function can raise errors of any kind.
        raise UserError(
            f"config.optimizer.name={settings.name!r} with options={dict(settings.options)}: "
            f"{one_line(error)}"
        ) from error
    if not isinstance(made, optax.GradientTransformation):
        raise UserError(
            f"config.optimizer.name={settings.name!r}: the function of this name returns a "
            f"{type(made).__name__}, but must return an optax.GradientTransformation"
        )
    return made, taken


def _negated(made: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return a transformation with negated updates. Optax's updates are to be added to the
    parameters, but the train step subtracts updates. The state is that of ``made``."""

    def update(gradients: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        updates, state = made.update(gradients, state, parameters)
        return jax.tree.map(jnp.negative, updates), state

    return optax.GradientTransformation(made.init, update)
