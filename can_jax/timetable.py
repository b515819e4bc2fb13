"""The durations of a run, all in steps."""

from typing import NamedTuple

from ml_collections import ConfigDict

from can_jax.config import steps_of
from can_jax.forward import heads


class Timetable(NamedTuple):
    """When things happen, counted in steps; None is never."""

    examples: int  # images of an epoch
    total: int
    warmup: int
    probe_every: int | None
    figures_every: int | None


def make_timetable(config: ConfigDict, examples: int) -> Timetable:
    """The durations of a checked configuration, given the size of the data set."""

    def steps(block: ConfigDict, name: str) -> int | None:
        return steps_of(block, name, config.batch_size, examples)

    draws = "prediction" in heads(config)  # without a decoder there is nothing to draw
    return Timetable(
        examples=examples,
        total=steps(config, "total") or 0,
        warmup=steps(config.optimizer, "warmup") or 0,
        probe_every=steps(config.probe, "every") or None,
        figures_every=(config.figures.every_steps or None) if draws else None,
    )
