"""The interface of evaluation protocols, and value ranges that their settings share."""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from can_jax.evaluate.task import EvalContext, EvalResults
from can_jax.utils.settings import Number, Table

BELOW_ONE = Number(0, below=1)
TEMPERATURE = Number(1e-3, 1000)
RATE = Number(above=0, high=1e4)
FACTOR = Number(0, 1e4)


def _accept(config: ConfigDict) -> None:
    """Accept any configuration."""


def _always(config: ConfigDict) -> bool:
    """Return True for any configuration."""
    return True


@dataclasses.dataclass(frozen=True)
class EvalProtocol:
    """An evaluation protocol.

    Attributes:
        run: A function that evaluates an `EvalContext` and returns the results. Collective: every
            process calls it.
        settings: The keys of the config block with the name of the protocol; empty if the protocol
            has no config block.
        check: A function that checks the evaluation's configuration and may replace values by
            equivalent ones; it raises `UserError` if a setting is invalid. The checks of all
            registered protocols run before every evaluation.
        run_settings: The dotted keys and blocks of the pretraining configuration, besides ``data``,
            that the protocol reads; they are validated before the evaluation.
        takes_classifier: Whether the protocol can also evaluate a trained classifier.
        compared: The metrics in which a study compares its arms, as a dict from column title to
            metric name; the first metric is the most important. The title of a metric in
            percent ends with ``(%)``. If ``compared`` is empty, a study cannot use the protocol.
        uses_data: A function that returns whether the protocol reads the data set of the block
            ``data``, given the evaluation's configuration.
        trains: Whether the protocol trains a model in the results directory. If ``trains`` is True,
            an export rejects results that do not belong to the run in the results directory.
    """

    run: Callable[[EvalContext], EvalResults]
    settings: Table = dataclasses.field(default_factory=dict)
    check: Callable[[ConfigDict], None] = _accept
    run_settings: tuple[str, ...] = ()
    takes_classifier: bool = False
    compared: dict[str, str] = dataclasses.field(default_factory=dict)
    uses_data: Callable[[ConfigDict], bool] = _always
    trains: bool = False
