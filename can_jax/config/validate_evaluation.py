"""The checks that relate settings of an evaluation to each other, before anything is read.

`can_jax.config.evaluation` states the values that each key may have by itself.
"""

from typing import Any

from ml_collections import ConfigDict

from can_jax.config.settings import flat_keys
from can_jax.config.validate import check, check_data, check_rates
from can_jax.optimizers.optimizer import REFERENCE_BATCH
from can_jax.utils.errors import UserError

# Of the data of an evaluation, the keys that also have a meaning for the data of the run.
OF_ANY_DATA = ("source", "image_size", "test_split", "held_out", "train_examples", "test_examples")
RESULTS = ("train", "test", "clean", "corrupted")  # names of results that are no test set's


def check_evaluation_data(config: ConfigDict, known: dict[str, Any]) -> None:
    """Check the data, and that nothing of it is set that has no effect.

    Args:
        config: Of an evaluation.
        known: The table of the block `data`.
    """
    data = config.data
    if data.source is None:
        for name, key in flat_keys(known):
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
    """Check that no data set's results would be written over those of another."""
    taken: set[str] = set()
    for number, block in enumerate(config.fewshot.datasets):
        name = dataset_name(number, block)
        check(
            name not in taken,
            f"fewshot.datasets[{number}]: another data set is called {name!r}; give each a `name` "
            "of its own",
        )
        taken.add(name)


def dataset_name(number: int, block: dict[str, Any]) -> str:
    """Return what results call an entry of `fewshot.datasets`."""
    name = block.get("name") or block.get("path") or f"data{number}"
    return str(name).replace("/", "_").strip("_")


def check_shifts(config: ConfigDict, corruptions: tuple[str, ...]) -> None:
    """Check that test sets have names and labels of their own.

    Args:
        config: Of an evaluation.
        corruptions: The names of all corruptions.
    """
    taken = {*RESULTS, *corruptions}
    for number, shift in enumerate(config.robustness.shifts):
        called, kind = f"robustness.shifts[{number}]", shift["kind"]
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
    """Check the schedule and the rates of the training of a classifier."""
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


def corruptions_of(value: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the corruptions that `robustness.corruptions` names.

    Args:
        value: All, none, or names with commas between.
        known: The names of all corruptions.

    Raises:
        UserError: A name is unknown.
    """
    if value in ("all", "none"):
        return known if value == "all" else ()
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if name not in known:
            raise UserError(f"{name!r} is none of all, none, {', '.join(known)}")
    return names
