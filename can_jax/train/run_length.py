"""The durations of a run, in steps."""

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
from can_jax.train.losses import heads


class RunLength(NamedTuple):
    """The durations of a run, in steps unless stated otherwise; None means never.

    Attributes:
        examples: The number of images in an epoch.
        total: The last step; `MOST_STEPS` for a timed run that has not ended.
        warmup: The number of warm-up steps.
        probe_every: The number of steps between two probes.
        figures_every: The number of steps between two figures.
        seconds: The length of a timed run in seconds; None for other runs.
    """

    examples: int  # images of an epoch
    total: int
    warmup: int
    probe_every: int | None
    figures_every: int | None
    seconds: float | None = None

    @property
    def schedule(self) -> int:
        """The length of the learning-rate schedule in steps; in virtual steps for a timed run."""
        return self.total if self.seconds is None else TIMED_STEPS


def make_run_length(config: ConfigDict, examples: int) -> RunLength:
    """Return the durations of a resolved configuration.

    Args:
        config: The resolved configuration.
        examples: The number of images of the data set.

    Raises:
        UserError: The warm-up is not shorter than the run.
    """
    total = steps_of(config, TOTAL, examples) or 0
    minutes = value_of(config, "total_minutes")
    draws = "decoder" in heads(config)  # without a decoder there are no figures
    return RunLength(
        examples=examples,
        total=total if minutes is None else MOST_STEPS,
        warmup=warmup_steps(config, examples, total),
        probe_every=steps_of(config, PROBE, examples) or None,
        figures_every=(config.figures.every_steps or None) if draws else None,
        seconds=None if minutes is None else 60.0 * minutes,
    )
