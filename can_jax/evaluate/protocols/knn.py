"""The protocol `knn`: weighted nearest neighbors on frozen features."""

import numpy as np

from can_jax.config.kinds import COUNT
from can_jax.evaluate.protocols.base import TEMPERATURE, EvalProtocol
from can_jax.evaluate.task import EvalContext, EvalResults, accuracy, both, held_out
from can_jax.features.knn import nearest, vote
from can_jax.utils.settings import Key, Several, Table

SETTINGS: Table = {
    "k": Key((1, 5, 10, 20, 50, 100, 200), Several(COUNT, empty=False),
            "The numbers of neighbors to compare."),
    "temperature": Key(
        (0.02, 0.07, 0.2), Several(TEMPERATURE, empty=False), "The temperatures to compare."
    ),
}  # fmt: skip


def knn(task: EvalContext) -> EvalResults:
    """Evaluate weighted kNN accuracy for each k and temperature.

    ``knn/top1`` uses the pair that is most accurate on held-out training examples.
    """
    settings = task.config.knn
    train, test, findings = both(task)
    features = task.select(train)
    most, few = held_out(train.labels, task.config.held_out, task.config.seed)
    pairs = [(k, t) for k in settings.k for t in settings.temperature]
    largest = max(settings.k)
    trial = nearest(features[most], features[few], largest)
    scores = [accuracy(vote(trial, train.labels[most], *p), train.labels[few]) for p in pairs]
    best = pairs[int(np.argmax(scores))]
    neighbors = nearest(features, task.select(test), largest)
    rows = []
    for k, temperature in pairs:
        value = accuracy(vote(neighbors, train.labels, k, temperature), test.labels)
        findings.metrics[f"knn/top1_k{k}_t{temperature:g}"] = value
        rows.append({"neighbours": k, "temperature": temperature, "top-1 (%)": round(value, 2)})
    name = f"knn/top1_k{best[0]}_t{best[1]:g}"
    findings.metrics = {"knn/top1": findings.metrics[name]} | findings.metrics
    findings.chosen = {"k": best[0], "temperature": best[1]}
    findings.tables["Nearest neighbours"] = rows
    return findings


PROTOCOL = EvalProtocol(knn, SETTINGS)
