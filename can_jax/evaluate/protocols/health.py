"""The protocol `health`: metrics of features, such as uniformity, and the kNN accuracy of each
class."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from can_jax.augment.photometric import Photometric, augment, to_float
from can_jax.config.kinds import COUNT
from can_jax.data.evaluation.examples import spread
from can_jax.data.evaluation.pairs import open_own
from can_jax.data.pipeline.training_loader import TrainingLoader
from can_jax.data.sources.labels import has_labels
from can_jax.data.sources.registry import open_source
from can_jax.distributed.mesh import replicated, whole_batch
from can_jax.evaluate.page import picture
from can_jax.evaluate.protocols.base import TEMPERATURE, EvalProtocol
from can_jax.evaluate.reports.pictures import pca_maps
from can_jax.evaluate.task import EvalContext, EvalResults, both
from can_jax.features import health
from can_jax.features.knn import nearest, vote
from can_jax.features.unit_length import unit
from can_jax.monitoring.scalars import effective_rank
from can_jax.train.random_keys import row_keys
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Key, Table, Whole

SETTINGS: Table = {
    "examples": Key(
        5000, Whole(2, 2**31 - 1),
        "The maximum number of images for the metrics other than kNN accuracies."
    ),
    "k": Key(20, COUNT, "The number of nearest neighbors that vote on the class."),
    "temperature": Key(0.07, TEMPERATURE, "The softmax temperature of the kNN votes."),
}  # fmt: skip


PCA = "Patch tokens: their first three principal components as colors"
UNLABELED = 4  # Without labels, neighbors are searched among this many images per measured image.


def representation_health(context: EvalContext) -> EvalResults:
    """Compute metrics of features, such as their uniformity, and the kNN accuracy of each class.

    If the training split has no labels, only the metrics that need no labels are computed.
    Collective: every process must call this.

    Raises:
        UserError: Fewer than two test examples are available.
    """
    settings = context.config.health
    if not has_labels(open_source(context.data, context.data.split)):
        return without_labels(context)
    train, test, results = both(context)
    chosen = spread(len(test), settings.examples)
    bank, queries = context.select(train), context.select(test)
    few = queries[chosen]
    measure_geometry(context, few, f"the split {test.name!r}", results)
    predictions = vote(
        nearest(bank, queries, settings.k), train.labels, settings.k, settings.temperature
    )
    results.score("knn/top1", predictions == test.labels)
    tolerance = health.tolerance(few, test.labels[chosen])
    if tolerance is None:
        results.warn(
            f"health/tolerance is omitted: no two of the {len(few)} examples have the same class"
        )
    else:
        results.metrics["health/tolerance"] = tolerance
    results.pictures[PCA] = picture(pca_maps(context, test), "principal components of patch tokens")
    results.tables |= by_class(predictions == test.labels, test.labels, train.classes)
    return results


def without_labels(context: EvalContext) -> EvalResults:
    """Compute the metrics that need no labels, for unlabeled training images.

    The report shows the nearest neighbors of some of the images. Collective.

    Raises:
        UserError: Fewer than two examples can be decoded.
    """
    settings, results = context.config.health, EvalResults()
    count = context.counts[0] or UNLABELED * settings.examples
    split = context.read(
        open_own(context.data, context.data.split, count, labeled=False), labeled=False
    )
    few = context.select(split)[spread(len(split), settings.examples)]
    measure_geometry(context, few, f"the split {split.name!r}", results)
    results.count("images", split)
    results.warn("the data has no labels: accuracies and health/tolerance are omitted")
    results.pictured_splits = (split, split)
    results.pictures[PCA] = picture(
        pca_maps(context, split), "principal components of patch tokens"
    )
    return results


def measure_geometry(
    context: EvalContext,
    few: Float[np.ndarray, "examples width"],
    called: str,
    results: EvalResults,
) -> None:
    """Compute and record the metrics that need no labels, such as uniformity.

    Args:
        context: The evaluation context: configuration, model and data.
        few: The feature vectors of at least two examples.
        called: The description of the split in error messages, such as ``the split 'test'``.
        results: The results, to which metrics are added.

    Raises:
        UserError: ``few`` holds fewer than two examples.
    """
    settings = context.config.health
    if len(few) < 2:
        raise UserError(
            f"health compares pairs of images, but {called} has {len(few)} usable images "
            f"(config.health.examples={settings.examples}); at least 2 are required"
        )
    on_sphere = unit(few)
    one, other = two_views(context, settings.examples)
    results.metrics |= {
        "health/effective_rank": effective_rank(on_sphere.T @ on_sphere),
        "health/alignment": health.alignment(one, other),
        "health/uniformity": health.uniformity(few, context.config.seed),
        "health/dead_dimensions": float(health.dead_dimensions(few)),
        "health/width": float(few.shape[1]),
    }
    results.examples["health"] = len(few)


def by_class(
    right: Bool[np.ndarray, " examples"],
    labels: Int[np.ndarray, " examples"],
    names: tuple[str, ...],
    most: int = 1000,
) -> dict[str, list[dict[str, Any]]]:
    """Return a report table of the kNN accuracy of each class, as a dict from the title to the
    rows.

    Args:
        right: Whether the prediction for each example is correct.
        labels: The class index of each example.
        names: The name of each class by class index; empty if unknown.
        most: The maximum number of rows of the table, an even number. With more than ``most``
            classes, the table holds the ``most / 2`` classes of highest accuracy and the
            ``most / 2`` of lowest accuracy.
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


def two_views(context: EvalContext, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of two views of training images, augmented as in pretraining.

    The function reads up to ``count`` images in full batches, but at least one batch.
    """
    config = context.subject.config.copy_and_resolve_references()
    with config.unlocked():
        config.batch_size = whole_batch(context.config.batch_size, context.mesh)
        config.augment.views = 2
    source = open_source(config.data, config.data.split)
    steps = max(1, min(count, source.examples) // config.batch_size)
    loader = TrainingLoader(config, source, context.mesh, 0, steps)
    settings = Photometric.from_settings(config.augment.to_dict())

    def features(parameters: Any, batch: Any) -> Any:
        rows = to_float(batch.views).reshape(-1, *batch.views.shape[2:])
        drawn = augment(rows, row_keys(config.seed, jnp.int32(0), batch), settings)
        images = (255 * drawn).round().astype(np.uint8)
        return context.subject.features(parameters, images)

    with jax.set_mesh(context.mesh):
        # The features are fetched by every process.
        compiled = jax.jit(features, out_shardings=replicated(context.mesh))
        parts = [
            np.asarray(compiled(context.subject.parameters, next(loader))) for _ in range(steps)
        ]
    selected = context.subject.select(np.concatenate(parts), context.config.features)
    return selected[0::2], selected[1::2]


PROTOCOL = EvalProtocol(representation_health, SETTINGS, run_settings=("augment",))
