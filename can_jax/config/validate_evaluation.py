"""Checks of how the settings of an evaluation relate to each other, before any data is read.

`can_jax.config.evaluation` states the values that each key can have on its own.
"""

from typing import Any

from ml_collections import ConfigDict

from can_jax.config.validate import check, check_data, check_rates
from can_jax.optimizers.optimizer import REFERENCE_BATCH
from can_jax.utils.errors import UserError
from can_jax.utils.settings import flat_keys

# The keys of an evaluation's block `data` that also apply to the data of the run.
OF_ANY_DATA = ("source", "image_size", "test_split", "held_out", "train_examples", "test_examples")
RESULTS = (
    "train",
    "test",
    "clean",
    "corrupted",
)  # names of results that are not those of a test set


def check_evaluation_data(config: ConfigDict, table: dict[str, Any]) -> None:
    """Check the data, and reject settings of it that have no effect.

    Args:
        config: The configuration of an evaluation.
        table: The table of the block `data`.
    """
    data = config.data
    if data.source is None:
        for name, key in flat_keys(table):
            check(
                name in OF_ANY_DATA or data[name] == key.default,
                f"data.{name}={data[name]} has no effect without config.data.source: the data is "
                "that of the run",
            )
        return
    check_data(config)
    check(not data.streaming, "data.streaming=True: an evaluation reads by number")
    for name in ("mean", "std"):
        value = config.model[name]
        check(
            not isinstance(value, tuple | list) or len(value) == data.channels,
            f"model.{name}={value} does not have a value for each of data.channels={data.channels}",
        )


def check_datasets(config: ConfigDict) -> None:
    """Check that no two data sets write their results under the same name."""
    taken: set[str] = set()
    for index, block in enumerate(config.fewshot.datasets):
        name = dataset_name(index, block)
        check(
            name not in taken,
            f"fewshot.datasets[{index}]: another data set is called {name!r}; give each a `name` "
            "of its own",
        )
        taken.add(name)


def dataset_name(index: int, block: dict[str, Any]) -> str:
    """Return the name under which results report an entry of `fewshot.datasets`."""
    name = block.get("name") or block.get("path") or f"data{index}"
    return str(name).replace("/", "_").strip("_")


def check_shifts(config: ConfigDict, corruptions: tuple[str, ...]) -> None:
    """Check that test sets have unique names, and label files exactly where they are needed.

    Args:
        config: The configuration of an evaluation.
        corruptions: The names of all corruptions.
    """
    taken = {*RESULTS, *corruptions}
    for index, shift in enumerate(config.robustness.shifts):
        called, kind = f"robustness.shifts[{index}]", shift["kind"]
        name = shift.get("name") or kind
        check(
            name not in taken,
            f"{called}: another test set is called {name!r}; give each a `name` of its own",
        )
        taken.add(name)
        if kind == "real":
            check(shift.get("labels"), f"{called}: labels is missing: give the file of labels")
        else:
            check("labels" not in shift, f"{called}: labels: only kind='real' reads them")


def check_classifier(config: ConfigDict) -> None:
    """Check the schedule and the learning rates of classifier training."""
    settings = config.classify
    if config.protocol != "classify":
        return
    check(
        settings.warmup_epochs < settings.total_epochs,
        f"classify.warmup_epochs={settings.warmup_epochs:g} is not shorter than "
        f"config.classify.total_epochs={settings.total_epochs:g}: shorten the warm-up",
    )
    if settings.optimizer == "adamw":
        peak = settings.learning_rate * config.batch_size / REFERENCE_BATCH
        check_rates("classify", settings, peak)


def corruptions_of(value: Any, available: tuple[str, ...]) -> tuple[str, ...]:
    """Return the corruptions that `robustness.corruptions` names.

    Args:
        value: ``all``, ``none``, or comma-separated names.
        available: The names of all corruptions.

    Raises:
        UserError: A name is unknown.
    """
    if value in ("all", "none"):
        return available if value == "all" else ()
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if name not in available:
            raise UserError(f"{name!r} is none of all, none, {', '.join(available)}")
    return names
