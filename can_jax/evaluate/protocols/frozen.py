"""Protocols on frozen features: nearest neighbors, linear heads, few-shot and representation
health."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from can_jax.augment.photometric import Photometric, augment, to_float
from can_jax.config.validate import check_source
from can_jax.config.validate_evaluation import dataset_name
from can_jax.data.evaluation.examples import spread
from can_jax.data.pipeline.training_loader import TrainingLoader
from can_jax.data.sources.registry import open_source
from can_jax.evaluate.split_features import Split
from can_jax.evaluate.task import EvalContext, EvalResults, accuracies, accuracy, both, held_out
from can_jax.features import health
from can_jax.features.fewshot import draw_shots, ridge_predictions
from can_jax.features.knn import nearest, vote
from can_jax.features.linear import Heads, grid, train_heads
from can_jax.features.unit_length import unit
from can_jax.monitoring.metrics import effective_rank
from can_jax.train.losses import row_keys
from can_jax.utils.errors import UserError


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


def best_heads(task: EvalContext, train: Split) -> tuple[Heads, str, list[dict[str, Any]]]:
    """Train linear heads over the hyperparameter grid, and refit the best one on all examples.

    The best setting is the most accurate one on held-out training examples.

    Returns:
        The refitted head, the kind of features that it reads, and a table of the grid.
    """
    settings, config = task.config.linear, task.config
    classes = len(train.known)
    most, few = held_out(train.labels, config.held_out, config.seed)
    cells = grid(settings.learning_rates, settings.weight_decays)
    options = {"epochs": settings.epochs, "batch_size": settings.batch_size, "seed": config.seed}
    rows, tried = [], []
    for kind in settings.features:
        features = task.select(train, kind)
        heads = train_heads(features[most], train.labels[most], classes, cells, **options)
        for cell, predictions in zip(cells, heads.predictions(features[few]), strict=True):
            value = accuracy(predictions, train.labels[few])
            tried.append((value, kind, cell))
            rows.append({"features": kind, **cell._asdict(), "held-out top-1 (%)": round(value, 2)})
    _, kind, cell = max(tried, key=lambda item: item[0])
    heads = train_heads(task.select(train, kind), train.labels, classes, [cell], **options)
    return heads, kind, rows


def linear(task: EvalContext) -> EvalResults:
    """Select a linear head on held-out training examples, and test it once.

    The features are extracted once for the whole grid.
    """
    train, test, findings = both(task)
    heads, kind, rows = best_heads(task, train)
    logits = heads.logits(task.select(test, kind))[0]
    measures = accuracies(logits, test.labels)
    findings.metrics |= {f"linear/{name}": value for name, value in measures.items()}
    best = max(rows, key=lambda row: row["held-out top-1 (%)"])
    findings.chosen = {key: best[key] for key in ("features", "learning_rate", "weight_decay")}
    findings.tables["Linear heads"] = rows
    return findings


def fewshot(task: EvalContext) -> EvalResults:
    """Evaluate ridge regression on a few examples of each class.

    The accuracy is the mean over several draws of examples, for each data set.
    """
    settings, findings, rows = task.config.fewshot, EvalResults(), []
    opened = [
        (name, task.pair(findings, data, test_split, name))
        for name, data, test_split in datasets_of(task)
    ]
    for name, pair in opened:
        train, test = task.read(pair.train), task.read(pair.test)
        findings.count(f"{name}/train", train)
        findings.count(f"{name}/test", test)
        features, queries = task.select(train), task.select(test)
        counts = np.bincount(train.labels)
        smallest = int(counts[counts > 0].min())
        if smallest < max(settings.shots):
            findings.warn(
                f"{name}: a class has {smallest} training examples, fewer than the "
                f"{max(settings.shots)} shots: all of them are taken"
            )
        for shots in settings.shots:
            scores = []
            for draw in range(settings.draws):
                rng = np.random.default_rng((task.config.seed, shots, draw))
                chosen = draw_shots(train.labels, shots, rng)
                predictions = ridge_predictions(
                    features[chosen], train.labels[chosen], queries, settings.ridge
                )
                scores.append(accuracy(predictions, test.labels))
            mean, deviation = float(np.mean(scores)), float(np.std(scores))
            findings.metrics[f"fewshot/{name}/{shots}shot"] = mean
            findings.metrics[f"fewshot/{name}/{shots}shot_std"] = deviation
            rows.append(
                {"data": name, "shots": shots, "top-1 (%)": f"{mean:.2f} ± {deviation:.2f}"}
            )
    findings.tables["Few shots"] = rows
    return findings


def datasets_of(task: EvalContext) -> list[tuple[str, ConfigDict, str | None]]:
    """Return the name, data block and test split of each data set of the few-shot protocol.

    A test split of None stands for that of the evaluation.

    Raises:
        UserError: The source of a data set is invalid.
    """
    datasets: list[tuple[str, ConfigDict, str | None]] = []
    if not task.config.fewshot.datasets:
        datasets.append((task.data.name or "data", task.data, None))
    for index, changes in enumerate(task.config.fewshot.datasets):
        changes = dict(changes)
        name, test_split = dataset_name(index, changes), changes.pop("test_split", None)
        if changes.get("source", task.data.source) != "tfds":
            changes.pop("name", None)
        block = ConfigDict(task.data.to_dict())
        with block.ignore_type():
            block.update(changes)
        try:
            check_source(block)
        except UserError as error:
            raise UserError(f"config.fewshot.datasets[{index}]: {error}") from None
        datasets.append((name, block, test_split))
    return datasets


def representation_health(task: EvalContext) -> EvalResults:
    """Measure the geometry of the representation, and the kNN accuracy of each class.

    Raises:
        UserError: Fewer than two labeled test examples are available.
    """
    settings = task.config.health
    train, test, findings = both(task)
    chosen = spread(len(test), settings.examples)
    if len(chosen) < 2:
        raise UserError(
            f"health compares pairs of images: the split {test.name!r} has {len(test)} with a "
            f"label, and config.health.examples={settings.examples}; both have to be 2 or more"
        )
    bank, queries = task.select(train), task.select(test)
    few = queries[chosen]
    on_sphere = unit(few)
    one, other = two_views(task, settings.examples)
    predictions = vote(
        nearest(bank, queries, settings.k), train.labels, settings.k, settings.temperature
    )
    findings.metrics |= {
        "health/effective_rank": effective_rank(on_sphere.T @ on_sphere),
        "health/alignment": health.alignment(one, other),
        "health/uniformity": health.uniformity(few, task.config.seed),
        "health/dead_dimensions": float(health.dead_dimensions(few)),
        "health/width": float(few.shape[1]),
        "knn/top1": accuracy(predictions, test.labels),
    }
    tolerance = health.tolerance(few, test.labels[chosen])
    if tolerance is None:
        findings.warn(
            f"health/tolerance is left out: no two of the {len(few)} examples are of one class"
        )
    else:
        findings.metrics["health/tolerance"] = tolerance
    findings.examples["health"] = len(few)
    findings.tables |= by_class(predictions == test.labels, test.labels, train.classes)
    return findings


def by_class(
    right: Bool[np.ndarray, " examples"],
    labels: Int[np.ndarray, " examples"],
    names: tuple[str, ...],
    most: int = 1000,
) -> dict[str, list[dict[str, Any]]]:
    """Return a table of the accuracy of each class, under its title.

    Args:
        right: Whether the prediction for each example is correct.
        labels: The class index of each example.
        names: The names of the classes; empty where unknown.
        most: The maximum number of rows. Beyond it, the table holds the best and the worst classes.
    """
    classes, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shares = np.round(100 * np.bincount(inverse, right) / sizes, 2)
    title, chosen = "kNN by class", np.arange(len(classes))
    if len(classes) > most:
        title += f", the best and the worst {most // 2} of {len(classes):,}"
        ranked = np.argsort(-shares, kind="stable")
        chosen = np.concatenate([ranked[: most // 2], ranked[-(most // 2) :]])
    rows = [
        {
            "class": names[label] if names else str(label),
            "examples": int(size),
            "kNN top-1 (%)": float(share),
        }
        for label, size, share in zip(classes[chosen], sizes[chosen], shares[chosen], strict=True)
    ]
    return {title: rows}


def two_views(task: EvalContext, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of two augmented views of about ``count`` training images.

    The augmentation is that of pretraining. The number of images is a multiple of the batch size.
    """
    config = task.subject.config.copy_and_resolve_references()
    with config.unlocked():
        config.batch_size = task.config.batch_size
        config.augment.views = 2
    source = open_source(config.data, config.data.split)
    steps = max(1, min(count, source.examples) // config.batch_size)
    loader = TrainingLoader(config, source, task.mesh, 0, steps)
    settings = Photometric.from_settings(config.augment.to_dict())

    def features(parameters: Any, batch: Any) -> Any:
        rows = to_float(batch.views).reshape(-1, *batch.views.shape[2:])
        drawn = augment(rows, row_keys(config.seed, jnp.int32(0), batch), settings)
        images = (255 * drawn).round().astype(np.uint8)
        return task.subject.features(parameters, images)

    with jax.set_mesh(task.mesh):
        compiled = jax.jit(features)
        parts = [np.asarray(compiled(task.subject.parameters, next(loader))) for _ in range(steps)]
    selected = task.subject.select(np.concatenate(parts), task.config.features)
    return selected[0::2], selected[1::2]
