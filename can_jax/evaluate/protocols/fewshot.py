"""The protocol `fewshot`: ridge regression on a few examples of each class."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from can_jax.config.defaults import DATA
from can_jax.config.kinds import COUNT
from can_jax.config.resolve import as_range
from can_jax.config.validate import check, check_source
from can_jax.data.sources.registry import SOURCES
from can_jax.evaluate.protocols.base import EvalProtocol
from can_jax.evaluate.task import EvalContext, EvalResults
from can_jax.features.fewshot import draw_shots, ridge_predictions
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Blocks, Key, Number, Several, Table, Text, Whole

# Keys of `data` that entries of `fewshot.datasets` share, so that an entry cannot set them.
SHARED = (
    "channels", "examples", "held_out", "image_size", "streaming", "test_examples",
    "train_examples", "window",
)  # fmt: skip
DATASET: Table = {name: key for name, key in DATA.items() if name not in SHARED} | {
    "test_split": Key(None, Text(), "The name of the test split."),
    "name": Key(
        None,
        Text(),
        "The name of the data set in the results; for the source `tfds`, also its TFDS name.",
    ),
}
SETTINGS: Table = {
    "shots": Key((1, 5, 10, 25), Several(COUNT, empty=False),
            "The numbers of training images per class; each number is evaluated."),
    "draws": Key(5, Whole(1, 10**6),
            "The number of random draws of the training images; accuracies are means over draws."),
    "ridge": Key(1024.0, Number(1e-6, 1e15),
            "The L2 penalty of ridge regression; the default is that of `big_vision`."),
    "datasets": Key(
        (), Blocks(DATASET, elsewhere={name: f"data.{name}" for name in SHARED}),
        "The data sets to use instead of `data`. Each entry overrides keys of `data` and can set a "
        "`name`.",
    ),
}  # fmt: skip


def check_fewshot(config: ConfigDict) -> None:
    """Check that the data sets of `fewshot.datasets` have unique names, and convert their ``range``
    settings to floats."""
    taken: set[str] = set()
    for index, block in enumerate(config.fewshot.datasets):
        name = dataset_name(index, block)
        check(
            name not in taken,
            f"fewshot.datasets[{index}]: another data set is named {name!r}; set a different "
            "`name`",
        )
        taken.add(name)
    with config.ignore_type():
        config.fewshot.datasets = tuple(
            {**block, "range": as_range(block["range"])} if "range" in block else block
            for block in config.fewshot.datasets
        )


def dataset_name(index: int, block: dict[str, Any]) -> str:
    """Return the name that denotes a data set in metric names.

    The name is the value of the key ``name`` in ``block`` or, without this key, the last component
    of ``path``. If both keys are missing, the name is ``data`` followed by ``index``.

    Args:
        index: The position of the data set in `fewshot.datasets`.
        block: The entry of the data set in `fewshot.datasets`.
    """
    path = str(block.get("path") or "").rstrip("/")
    name = block.get("name") or path.rsplit("/", 1)[-1] or f"data{index}"
    return str(name).replace("/", "_").strip("_")


def fewshot(context: EvalContext) -> EvalResults:
    """Evaluate ridge regression on a few training examples per class, for each data set.

    An accuracy is the mean over several random draws of the training examples. Collective: every
    process must call this.
    """
    settings, results, rows = context.config.fewshot, EvalResults(), []
    opened = [
        (name, context.pair(results, data, test_split, name))
        for name, data, test_split in datasets_of(context.data, settings.datasets)
    ]
    for name, pair in opened:
        train, test = context.read(pair.train), context.read(pair.test)
        results.count(f"{name}/train", train)
        results.count(f"{name}/test", test)
        features, queries = context.select(train), context.select(test)
        counts = np.bincount(train.labels)
        smallest = int(np.min(counts[counts > 0]))
        if smallest < max(settings.shots):
            results.warn(
                f"{name}: a class has only {smallest} training examples, fewer than "
                f"{max(settings.shots)} shots, so all of its examples are used"
            )
        for shots in settings.shots:
            right = []
            for draw in range(settings.draws):
                rng = np.random.default_rng((context.config.seed, shots, draw))
                chosen = draw_shots(train.labels, shots, rng)
                predictions = ridge_predictions(
                    features[chosen], train.labels[chosen], queries, settings.ridge
                )
                right.append(predictions == test.labels)
            mean = results.score(f"fewshot/{name}/{shots}shot", np.mean(right, axis=0))
            deviation = 100.0 * float(np.std(np.mean(right, axis=1)))
            results.metrics[f"fewshot/{name}/{shots}shot_std"] = deviation
            rows.append(
                {"data": name, "shots": shots, "top-1 (%)": f"{mean:.2f} ± {deviation:.2f}"}
            )
    results.tables["Few shots"] = rows
    return results


def datasets_of(
    data: ConfigDict, entries: tuple[dict[str, Any], ...]
) -> list[tuple[str, ConfigDict, str | None]]:
    """Return the name, data block and test split of each data set of the few-shot protocol.

    If the test split is None, `EvalContext.pair` chooses a test split.

    Args:
        data: The ``data`` block of the evaluation.
        entries: The entries of `fewshot.datasets`; empty to use ``data`` itself.

    Raises:
        UserError: The data settings of an entry of `fewshot.datasets` are invalid.
    """
    datasets: list[tuple[str, ConfigDict, str | None]] = []
    if not entries:
        datasets.append((data.name or "data", data, None))
    for index, changes in enumerate(entries):
        changes = dict(changes)
        name, test_split = dataset_name(index, changes), changes.pop("test_split", None)
        source = changes.get("source") or data.source
        if "name" not in SOURCES.get(source).needs:  # the name is only for the results
            changes.pop("name", None)
        if "source" in changes:
            changes = {"options": ()} | changes  # `data.options` apply only to `data.source`
        if changes.keys() & {"path", "source", "name"}:
            changes = {"index": None, "labels": None} | changes  # they describe the files of `data`
        if "split" in changes:
            changes = {"index": None} | changes
        block = ConfigDict(data.to_dict())
        with block.ignore_type():
            block.update(changes)
        try:
            check_source(block)
        except UserError as error:
            raise UserError(f"config.fewshot.datasets[{index}]: {error}") from None
        datasets.append((name, block, test_split))
    return datasets


def uses_data(config: ConfigDict) -> bool:
    """Return whether a data set of the few-shot protocol is the block ``data``, or overrides it
    without a source of its own."""
    entries = config.fewshot.datasets
    return not entries or any("source" not in entry for entry in entries)


PROTOCOL = EvalProtocol(fewshot, SETTINGS, check_fewshot, uses_data=uses_data)
