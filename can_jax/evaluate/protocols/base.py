"""The interface of an evaluation protocol, and kinds of values that several protocols use."""

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


@dataclasses.dataclass(frozen=True)
class EvalProtocol:
    """An evaluation protocol.

    Attributes:
        run: A function from the evaluation context to the results. Collective: every process calls
            it.
        settings: The keys of the protocol's config block, which has the protocol's name; by default
            there is no block.
        check: A function that checks the settings and may replace their values by equivalent ones.
            It raises `UserError` if a setting is invalid. The checks of all registered protocols
            are called before every evaluation.
        run_settings: The dotted keys and blocks of the pretraining run, besides ``data``, that the
            protocol reads. Older runs may hold values that are no longer valid.
        takes_classifier: Whether the protocol can evaluate a trained classifier as well as an
            encoder.
        trains: Whether the protocol runs a training in the directory of its results. An export then
            accepts the results only if they belong to the run in that directory.
    """

    run: Callable[[EvalContext], EvalResults]
    settings: Table = dataclasses.field(default_factory=dict)
    check: Callable[[ConfigDict], None] = _accept
    run_settings: tuple[str, ...] = ()
    takes_classifier: bool = False
    trains: bool = False
