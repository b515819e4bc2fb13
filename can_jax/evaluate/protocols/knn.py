"""The protocol `knn`: weighted nearest neighbors on frozen features.

`can_jax.features.knn` finds the neighbors and counts their votes.
"""

from typing import Any

import numpy as np

from can_jax.config.kinds import COUNT
from can_jax.evaluate.baselines import baselines
from can_jax.evaluate.protocols.base import TEMPERATURE, EvalProtocol
from can_jax.evaluate.task import EvalContext, EvalResults, accuracy, held_out, read_pair
from can_jax.features.knn import knn_predictions, nearest, vote
from can_jax.utils.settings import Key, Several, Table

SETTINGS: Table = {
    "k": Key((1, 5, 10, 20, 50, 100, 200), Several(COUNT, empty=False),
            "The values to evaluate for k, the number of nearest neighbors."),
    "temperature": Key(
        (0.02, 0.07, 0.2), Several(TEMPERATURE, empty=False),
        "The values to evaluate for the softmax temperature of the kNN votes."
    ),
}  # fmt: skip


K, FIXED_TEMPERATURE = 20, 0.07  # The fixed setting, which is DINO's.
TRIED = 10_000  # The maximum number of held-out examples on which settings are compared.
NAMES = {"untrained": "untrained encoder", "pixels": "raw pixels"}


def knn(context: EvalContext) -> EvalResults:
    """Evaluate weighted kNN accuracy for each k and temperature.

    ``knn/top1_fixed`` is the accuracy at k = 20 and temperature 0.07. ``knn/top1`` uses the k and
    temperature with the highest accuracy on held-out training examples. Collective: every process
    must call this.
    """
    settings, results = context.config.knn, EvalResults()
    pair = context.pair(results)
    train, test = read_pair(context, pair, results)
    features, queries = context.select(train), context.select(test)
    share = min(context.config.held_out, TRIED / len(train))
    most, few = held_out(train.labels, train.outputs, share, context.config.seed)
    pairs = [(k, t) for k in settings.k for t in settings.temperature]
    largest = max(*settings.k, K)
    held_out_neighbors = nearest(features[most], features[few], largest)
    scores = [
        accuracy(vote(held_out_neighbors, train.labels[most], *p), train.labels[few]) for p in pairs
    ]
    best = pairs[int(np.argmax(scores))]
    neighbors = nearest(features, queries, largest)
    fixed = K, FIXED_TEMPERATURE
    rights = {
        p: vote(neighbors, train.labels, *p) == test.labels for p in dict.fromkeys([fixed, *pairs])
    }
    results.score("knn/top1_fixed", rights[fixed])
    results.score("knn/top1", rights[best])
    rows = []
    for k, temperature in pairs:
        value = results.score(f"knn/top1_k{k}_t{temperature:g}", rights[k, temperature])
        rows.append({"neighbors": k, "temperature": temperature, "top-1 (%)": round(value, 2)})
    results.chosen = {"k": best[0], "temperature": best[1]}
    comparison = [_row("this encoder", "knn/top1_fixed", results)]
    for name, bank, others in baselines(context, pair):
        votes = knn_predictions(bank, train.labels, others, K, FIXED_TEMPERATURE)
        results.score(f"knn/top1_fixed_{name}", votes == test.labels)
        comparison.append(_row(NAMES[name], f"knn/top1_fixed_{name}", results))
    results.score("knn/top1_largest_class", test.labels == np.argmax(np.bincount(train.labels)))
    comparison.append(_row("none (majority class)", "knn/top1_largest_class", results))
    results.tables[f"Baselines: k = {K}, temperature {FIXED_TEMPERATURE}"] = comparison
    results.tables["Nearest neighbors: every setting"] = rows
    return results


def _row(name: str, metric: str, results: EvalResults) -> dict[str, Any]:
    """Return a row of the baseline table: features, accuracy and bootstrap interval."""
    low, high = results.intervals[metric]
    return {
        "features": name,
        "top-1 (%)": round(results.metrics[metric], 2),
        "95 % interval": f"{low:.2f} to {high:.2f}",
    }


PROTOCOL = EvalProtocol(knn, SETTINGS)
