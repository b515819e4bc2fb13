"""The protocol `disentanglement`: DCI and MIG scores of features of images with known generative
factors."""

import numpy as np

from can_jax.evaluate.protocols.base import EvalProtocol
from can_jax.evaluate.split_features import Split
from can_jax.evaluate.task import EvalContext, EvalResults, read_pair
from can_jax.features.disentanglement import (
    dci,
    mean_square_correlation,
    mutual_information_gap,
)
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Key, Number, Table

SETTINGS: Table = {
    "penalty": Key(
        0.02,
        Number(0, 10),
        "The L1 penalty of DCI's lasso regressions, which use standardized features and factors.",
    ),
}


def disentanglement(context: EvalContext) -> EvalResults:
    """Measure DCI, the mutual information gap, and the correlations between feature dimensions.

    All metrics are computed on the test split, after the regressions of DCI are fitted on the
    training split. Collective: every process must call this.

    Raises:
        UserError: The data source does not provide the generative factors of its images.
    """
    results = EvalResults()
    pair = context.pair(results)
    for part in (pair.train, pair.test):
        if not part.source.factors():
            raise UserError(
                f"config.data.source={part.data.source!r} does not provide the generative factors "
                f"of the split {part.name!r}; set config.data.source='shapes', or implement "
                "factors() in your own source"
            )
    train, test = read_pair(context, pair, results)
    features, queries = (context.select(split).astype(np.float64) for split in (train, test))
    train_factors, test_factors = factors_of(train), factors_of(test)
    penalty = context.config.disentanglement.penalty
    scores = dci((features, train_factors), (queries, test_factors), penalty)
    gaps = mutual_information_gap(queries, test_factors)
    results.metrics |= {
        "disentanglement/dci": scores.disentanglement,
        "disentanglement/completeness": scores.completeness,
        "disentanglement/informativeness": scores.informativeness,
        "disentanglement/mig": float(np.mean(list(gaps.values()))),
        "disentanglement/mean_square_correlation": mean_square_correlation(queries),
    }
    results.tables["Disentanglement by factor"] = [
        {
            "factor": name,
            "explained variance": round(scores.by_factor[name], 3),
            "mutual information gap": round(gaps[name], 3),
        }
        for name in gaps
    ]
    return results


def factors_of(split: Split) -> dict[str, np.ndarray]:
    """Return a dict from the name of each generative factor to its values for the examples of a
    split."""
    return {name: values[split.indices] for name, values in split.source.factors().items()}


COMPARED = {
    "DCI": "disentanglement/dci",
    "completeness": "disentanglement/completeness",
    "informativeness": "disentanglement/informativeness",
    "MIG": "disentanglement/mig",
    "mean squared correlation": "disentanglement/mean_square_correlation",
}
PROTOCOL = EvalProtocol(disentanglement, SETTINGS, compared=COMPARED)
