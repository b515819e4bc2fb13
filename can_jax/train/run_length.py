"""The length of a run and the intervals of its evaluations, in steps."""

from typing import NamedTuple

from ml_collections import ConfigDict

from can_jax.config.durations import (
    MOST_STEPS,
    PROBE,
    TIMED_STEPS,
    TOTAL,
    steps_of,
    value_of,
    warmup_steps,
)
from can_jax.objectives import reads


class RunLength(NamedTuple):
    """The length, warm-up and evaluation intervals of a run.

    Attributes:
        examples: The number of training images per epoch.
        total: The number of steps of the run; `MOST_STEPS` for a timed run that has not ended.
        warmup: The number of warm-up steps of the learning rate.
        probe_every: The number of steps between kNN probes; None for no probe.
        figures_every: The number of steps between figures; None for no figures.
        seconds: The time limit of a timed run in seconds; None for other runs.
    """

    examples: int
    total: int
    warmup: int
    probe_every: int | None
    figures_every: int | None
    seconds: float | None = None

    @property
    def schedule(self) -> int:
        """The length of the learning-rate schedule in steps; `TIMED_STEPS` for a timed run."""
        return self.total if self.seconds is None else TIMED_STEPS


def make_run_length(config: ConfigDict, examples: int) -> RunLength:
    """Convert the durations of a resolved configuration to steps.

    Args:
        config: The resolved configuration.
        examples: The number of images of the training data.

    Raises:
        UserError: The warm-up is not shorter than the run.
    """
    total = steps_of(config, TOTAL, examples) or 0
    minutes = value_of(config, "total_minutes")
    decodes = "prediction" in reads(config.objective.to_dict())  # which figures require
    return RunLength(
        examples=examples,
        total=total if minutes is None else MOST_STEPS,
        warmup=warmup_steps(config, examples, total),
        probe_every=steps_of(config, PROBE, examples) or None,
        figures_every=(config.figures.every_steps or None) if decodes else None,
        seconds=None if minutes is None else 60.0 * minutes,
    )
