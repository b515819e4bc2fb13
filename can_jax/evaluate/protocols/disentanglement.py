"""The protocol `disentanglement`: DCI and MIG of features of images with known factors."""

import numpy as np

from can_jax.evaluate.protocols.base import EvalProtocol
from can_jax.evaluate.split_features import Split
from can_jax.evaluate.task import EvalContext, EvalResults, read_pair
from can_jax.features.disentanglement import dci, mutual_information_gap
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Key, Number, Table

SETTINGS: Table = {
    "penalty": Key(0.02, Number(0, 10), "The penalty of the lasso of DCI, on standardized values."),
}


def disentanglement(task: EvalContext) -> EvalResults:
    """Measure DCI and the mutual information gap of the features of the test split.

    The regressions of DCI are fitted on the training split.

    Raises:
        UserError: The factors of the images are not known.
    """
    findings = EvalResults()
    pair = task.pair(findings)
    for part in (pair.train, pair.test):
        if not part.source.factors():
            raise UserError(
                f"config.data.source={part.data.source!r}: the factors of the images of "
                f"{part.name!r} are not known; set config.data.source='shapes', or define "
                "factors() of your own source"
            )
    train, test = read_pair(task, pair, findings)
    features, queries = (task.select(split).astype(np.float64) for split in (train, test))
    known, wanted = factors_of(train), factors_of(test)
    scores = dci((features, known), (queries, wanted), task.config.disentanglement.penalty)
    gaps = mutual_information_gap(queries, wanted)
    findings.metrics |= {
        "disentanglement/dci": scores.disentanglement,
        "disentanglement/completeness": scores.completeness,
        "disentanglement/informativeness": scores.informativeness,
        "disentanglement/mig": float(np.mean(list(gaps.values()))),
    }
    findings.tables["Disentanglement by factor"] = [
        {
            "factor": name,
            "explained variance": round(scores.by_factor[name], 3),
            "mutual information gap": round(gaps[name], 3),
        }
        for name in gaps
    ]
    return findings


def factors_of(split: Split) -> dict[str, np.ndarray]:
    """Return the factors of the examples of a split, by name."""
    return {name: values[split.indices] for name, values in split.source.factors().items()}


PROTOCOL = EvalProtocol(disentanglement, SETTINGS)
