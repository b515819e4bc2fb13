"""The durations of a run, in steps."""

from typing import NamedTuple

from ml_collections import ConfigDict

from can_jax.config.durations import PROBE, TOTAL, steps_of, warmup_steps
from can_jax.train.losses import heads


class RunLength(NamedTuple):
    """The durations of a run in steps; None stands for never.

    Attributes:
        examples: The number of images of an epoch.
        total: The last step.
        warmup: The number of warm-up steps.
        probe_every: The number of steps between two probes.
        figures_every: The number of steps between two figures.
    """

    examples: int  # images of an epoch
    total: int
    warmup: int
    probe_every: int | None
    figures_every: int | None


def make_run_length(config: ConfigDict, examples: int) -> RunLength:
    """Return the durations of a resolved configuration.

    Args:
        config: The resolved configuration.
        examples: The number of images of the data set.

    Raises:
        UserError: The warm-up is not shorter than the run.
    """
    total = steps_of(config, TOTAL, examples) or 0
    draws = "decoder" in heads(config)  # without a decoder there are no figures
    return RunLength(
        examples=examples,
        total=total,
        warmup=warmup_steps(config, examples, total),
        probe_every=steps_of(config, PROBE, examples) or None,
        figures_every=(config.figures.every_steps or None) if draws else None,
    )
