"""The protocol `linear`: the best linear head of a hyperparameter grid, on frozen features."""

from typing import Any

from can_jax.config.kinds import COUNT
from can_jax.config.pretrained import FEATURES
from can_jax.evaluate.protocols.base import FACTOR, RATE, EvalProtocol
from can_jax.evaluate.split_features import Split
from can_jax.evaluate.task import (
    EvalContext,
    EvalResults,
    accuracy,
    both,
    held_out,
    right_predictions,
)
from can_jax.features.linear import Heads, Setting, grid, train_heads
from can_jax.utils.settings import Choice, Key, Several, Table, Whole

# Each combination of learning rate, weight decay and kind of features defines a head. All heads on
# one kind of features are trained at once.
SETTINGS: Table = {
    "learning_rates": Key(
        (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), Several(RATE, empty=False),
            "The learning rates in the hyperparameter grid."
    ),
    "weight_decays": Key(
        (0.0, 1e-6, 1e-5, 1e-4), Several(FACTOR, empty=False),
        "The weight decays in the hyperparameter grid."
    ),
    "features": Key(
        ("patches", "class", "both"), Several(Choice(FEATURES), empty=False),
        "The kinds of features in the hyperparameter grid.",
    ),
    "batch_size": Key(1024, COUNT, "The number of images per optimizer step.", unit="images"),
    "epochs": Key(50, Whole(1, 10**6), "The training length of each head.", unit="epochs"),
}  # fmt: skip


def best_heads(
    context: EvalContext, train: Split
) -> tuple[Heads, dict[str, Any], list[dict[str, Any]]]:
    """Train a linear head for each grid setting, and retrain the head of the best setting on all
    training examples.

    The best setting has the highest accuracy on held-out training examples.

    Returns:
        The retrained head, the best setting as a dict with the keys ``features``,
        ``learning_rate`` and ``weight_decay``, and a table row for each grid setting.
    """
    settings, config = context.config.linear, context.config
    classes = len(train.training_classes)
    most, few = held_out(train.labels, train.outputs, config.held_out, config.seed)
    candidates = grid(settings.learning_rates, settings.weight_decays)
    options = {"epochs": settings.epochs, "batch_size": settings.batch_size, "seed": config.seed}
    tried: list[tuple[float, dict[str, Any]]] = []
    for kind in settings.features:
        features = context.select(train, kind)
        heads = train_heads(features[most], train.labels[most], classes, candidates, **options)
        for setting, predictions in zip(candidates, heads.predictions(features[few]), strict=True):
            value = accuracy(predictions, train.labels[few])
            tried.append((value, {"features": kind, **setting._asdict()}))
    _, best = max(tried, key=lambda item: item[0])
    setting = Setting(best["learning_rate"], best["weight_decay"])
    features = context.select(train, best["features"])
    heads = train_heads(features, train.labels, classes, [setting], **options)
    rows = [chosen | {"held-out top-1 (%)": round(value, 2)} for value, chosen in tried]
    return heads, best, rows


def linear(context: EvalContext) -> EvalResults:
    """Select a linear head by its accuracy on held-out training examples, and test this head.

    Features are extracted only once for all settings of the hyperparameter grid. Collective: every
    process must call this.
    """
    train, test, results = both(context)
    heads, results.chosen, rows = best_heads(context, train)
    logits = heads.logits(context.select(test, results.chosen["features"]))[0]
    for name, right in right_predictions(logits, test.labels).items():
        results.score(f"linear/{name}", right)
    results.tables["Linear heads"] = rows
    return results


PROTOCOL = EvalProtocol(linear, SETTINGS, compared={"linear top-1 (%)": "linear/top1"})
