"""The learning-rate schedules that `schedule.name` selects: ours, optax's and a user's own."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import optax

from can_jax.utils.errors import UserError, one_line
from can_jax.utils.nearest import nearest
from can_jax.utils.registry import Registry

# A value is a function (peak, steps, **options) that returns the schedule after the warm-up.
SCHEDULES: Registry[Callable[..., optax.Schedule]] = Registry("schedule")
PEAK, STEPS = ("init_value", "value"), ("decay_steps", "transition_steps")  # optax's names


@SCHEDULES.register("cosine")
def cosine(peak: float, steps: int, alpha: float = 0.0) -> optax.Schedule:
    """Return a cosine decay to ``alpha * peak`` (arXiv 1608.03983)."""
    return optax.cosine_decay_schedule(peak, steps, alpha)


@SCHEDULES.register("linear")
def linear(peak: float, steps: int, end_value: float = 0.0) -> optax.Schedule:
    """Return a linear decay to ``end_value``."""
    return optax.linear_schedule(peak, end_value, steps)


@SCHEDULES.register("constant")
def constant(peak: float, steps: int) -> optax.Schedule:
    """Return a schedule that stays at the peak."""
    return optax.constant_schedule(peak)


def find_schedule(name: Any) -> Callable[..., optax.Schedule] | None:
    """Return the function that makes a schedule from ``(peak, steps, **options)``, or None.

    A registered name comes first, then one of optax whose first parameter is the initial value.
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
    """Return the error for a schedule that does not exist."""
    names = [*SCHEDULES, *(name for name in dir(optax) if find_schedule(name))]
    near = nearest(name, names)
    hint = f"did you mean {near!r}?" if near else f"such as {', '.join(SCHEDULES)}"
    return UserError(
        f"config.schedule.name={name!r} is neither registered nor a schedule of optax; {hint}"
    )


def learning_rate_schedule(
    peak: float, warmup_steps: int, total_steps: int, settings: Any = None
) -> optax.Schedule:
    """Return a schedule with linear warm-up, followed by the selected one; by default a cosine.

    If the run is shorter than its warm-up, only the first part of the warm-up takes place.

    Args:
        peak: The learning rate at the end of the warm-up.
        warmup_steps: The number of steps from 0 to ``peak``.
        total_steps: The last step of the run; the cosine reaches 0 there.
        settings: The config block ``schedule``; None selects cosine decay.

    Raises:
        UserError: There is no such schedule, it does not take the options, or it returns no finite
            numbers.
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
        rates = [] if name == "cosine" else [float(after(0)), float(after(steps))]
    except Exception as error:  # of a library's or a user's function
        raise UserError(f"{form}: {one_line(error)}") from error
    if not all(map(math.isfinite, rates)):
        raise UserError(f"{form} returns a learning rate of {rates[0]} to {rates[1]}")
    return optax.join_schedules([warmup, after], [warmup_steps])
