"""The learning-rate schedules that `config.schedule.name` can select: registered ones and those of
optax."""

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from can_jax.utils.errors import UserError, one_line
from can_jax.utils.nearest import nearest
from can_jax.utils.registry import Registry

# Each value is a function (peak, steps, **options) that returns the schedule after the warm-up.
SCHEDULES: Registry[Callable[..., optax.Schedule]] = Registry("schedule")
PEAK, STEPS = ("init_value", "value"), ("decay_steps", "transition_steps")  # optax's names


@SCHEDULES.register("cosine")
def cosine(peak: float, steps: int, alpha: float = 0.0) -> optax.Schedule:
    """Return a cosine decay from ``peak`` to ``alpha * peak`` (arXiv 1608.03983)."""
    return optax.cosine_decay_schedule(peak, steps, alpha)


@SCHEDULES.register("linear")
def linear(peak: float, steps: int, end_value: float = 0.0) -> optax.Schedule:
    """Return a linear decay from ``peak`` to ``end_value``."""
    return optax.linear_schedule(peak, end_value, steps)


@SCHEDULES.register("constant")
def constant(peak: float, steps: int) -> optax.Schedule:
    """Return a schedule with the constant learning rate ``peak``."""
    return optax.constant_schedule(peak)


@SCHEDULES.register("stable")
def stable(peak: float, steps: int, decay_share: float = 0.2) -> optax.Schedule:
    """Return a schedule that is constant and then decays as ``1 - sqrt(t)`` (arXiv 2405.18392).

    The learning rate decays during the last fraction ``decay_share`` of the steps, in which ``t``
    rises from 0 to 1. With ``decay_share=0`` the learning rate never decays. To decay from an
    intermediate checkpoint, copy the run directory, and resume the copy with a different run length
    and a different ``decay_share``.

    Raises:
        ValueError: ``decay_share`` is not in [0, 1].
    """
    if not 0 <= decay_share <= 1:
        raise ValueError(f"decay_share={decay_share}: give a number in [0, 1]")
    start, length = (1 - decay_share) * steps, max(decay_share * steps, 1e-9)

    def rate(step: Any) -> Any:
        return peak * (1 - jnp.sqrt(jnp.clip((step - start) / length, 0.0, 1.0)))

    return rate if decay_share else optax.constant_schedule(peak)


@SCHEDULES.register("restarts")
def restarts(
    peak: float, steps: int, cycles: int = 4, growth: float = 1.0, decay: float = 1.0
) -> optax.Schedule:
    """Return a schedule of repeated cosine decays to 0 with restarts (SGDR, arXiv 1608.03983).

    Args:
        peak: The learning rate at the start of the first cycle.
        steps: The total number of steps of all cycles.
        cycles: The number of cycles; at least 1.
        growth: The ratio of a cycle's length to that of the previous cycle.
        decay: The ratio of a cycle's peak learning rate to that of the previous cycle.

    Raises:
        ValueError: ``cycles`` is below 1, ``growth`` or ``decay`` is not positive and finite, or a
            cycle would have no step.
    """
    if cycles < 1 or not 0 < growth < math.inf or not 0 < decay < math.inf:
        raise ValueError(
            f"cycles={cycles}, growth={growth}, decay={decay}: cycles must be at least 1, and "
            "growth and decay must be positive and finite"
        )
    lengths = [growth**i for i in range(cycles)]
    ends = [round(steps * sum(lengths[: i + 1]) / sum(lengths)) for i in range(cycles)]
    spans = list(itertools.pairwise([0, *ends]))
    if any(start == end for start, end in spans):
        raise ValueError(
            f"cycles={cycles}, growth={growth}: some cycle would have no step, since only {steps} "
            "steps follow the warm-up; give fewer cycles"
        )
    parts = [
        optax.cosine_decay_schedule(peak * decay**i, end - start)
        for i, (start, end) in enumerate(spans)
    ]
    return optax.join_schedules(parts, ends[:-1])


def find_schedule(name: Any) -> Callable[..., optax.Schedule] | None:
    """Return the function ``(peak, steps, **options)`` that builds the named schedule, or None if
    the name is unknown.

    Registered names take precedence over the schedules of optax. A function of optax qualifies if
    its first parameter is ``init_value`` or ``value``.
    """
    if name in SCHEDULES:
        return SCHEDULES.get(name)
    function = getattr(optax, name, None) if isinstance(name, str) else None
    if not inspect.isfunction(function):
        return None
    parameters = list(inspect.signature(function).parameters)
    if not parameters or parameters[0] not in PEAK:
        return None
    steps_name = next((name for name in STEPS if name in parameters), None)

    def made(peak: float, steps: int, **options: Any) -> optax.Schedule:
        given = {} if steps_name is None else {steps_name: steps}
        schedule: optax.Schedule = function(peak, **given | options)
        return schedule

    return made


def unknown_schedule(name: str) -> UserError:
    """Return the error for an unknown ``schedule.name``, which suggests a similar name or lists the
    registered names."""
    names = [*SCHEDULES, *(name for name in dir(optax) if find_schedule(name))]
    near = nearest(name, names)
    hint = f"did you mean {near!r}?" if near else f"registered are {', '.join(SCHEDULES)}"
    return UserError(
        f"config.schedule.name={name!r} is neither registered nor a schedule of optax; {hint}"
    )


def learning_rate_schedule(
    peak: float, warmup_steps: int, total_steps: int, settings: Any = None
) -> optax.Schedule:
    """Return a linear warm-up from 0 to ``peak``, followed by the configured schedule.

    A run that is shorter than the warm-up does not reach ``peak``.

    Args:
        peak: The learning rate at the end of the warm-up.
        warmup_steps: The number of warm-up steps; 0 for no warm-up.
        total_steps: The number of steps of the run, warm-up included.
        settings: The config block ``schedule``; None selects cosine decay.

    Raises:
        UserError: ``schedule.name`` is unknown, ``schedule.options`` are not valid for the
            schedule, or the schedule's first or last learning rate is negative or not finite.
    """
    warmup = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    steps = max(total_steps - warmup_steps, 1)
    if settings is None:
        return optax.join_schedules([warmup, cosine(peak, steps)], [warmup_steps])
    name, options = settings.name, dict(settings.options)
    function = find_schedule(name)
    if function is None:
        raise unknown_schedule(name)
    form = f"config.schedule.name={name!r} with options={options}"
    try:
        after = function(peak, steps, **options)
        # The default is known to be finite, and its check would compile programs at each start.
        unchecked = name == "cosine" and not options
        rates = [] if unchecked else [float(after(0)), float(after(steps))]
    except Exception as error:  # A library's or a user's function can raise errors of any kind.
        raise UserError(f"{form}: {one_line(error)}") from error
    if not all(map(math.isfinite, rates)):
        raise UserError(
            f"{form} has a learning rate that is not finite: {rates[0]} at its first step, "
            f"{rates[1]} at its last; change the options"
        )
    if min(rates, default=0.0) < 0:
        raise UserError(
            f"{form} has a negative learning rate: {rates[0]:g} at its first step, {rates[1]:g} at "
            "its last; change the options"
        )
    return optax.join_schedules([warmup, after], [warmup_steps])
