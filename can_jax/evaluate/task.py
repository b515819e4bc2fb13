"""The inputs and the results of an evaluation protocol, and helpers that protocols share."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, Shaped
from ml_collections import ConfigDict

from can_jax.data.evaluation.pairs import TEST_SPLITS, Pair, Part, open_pair, open_part, open_test
from can_jax.data.sources.labels import Classes
from can_jax.encoders.pretrained import PretrainedEncoder
from can_jax.evaluate.page import Html
from can_jax.evaluate.split_features import Split, SplitFeatureExtractor
from can_jax.features.bootstrap import interval
from can_jax.utils.errors import UserError


@dataclasses.dataclass
class EvalResults:
    """The results of one evaluation protocol.

    Attributes:
        metrics: The value of each metric, by name. Accuracies are in percent.
        intervals: The 95 % bootstrap interval over the test examples for some metrics, by name.
        examples: The number of examples by role, such as ``train``, ``test`` and ``test_skipped``.
        data: The name and fingerprint of each split, as ``name:fingerprint``, by role, such
            as ``train`` or ``test``.
        chosen: The hyperparameters selected on held-out examples, by name. For the protocol
            `classify`, the dict holds only ``seconds``, the training time.
        tables: The tables of the report by title, each a list of rows.
        pictures: The pictures of the report as HTML elements, by title.
        pictured_splits: The training and test splits for pictures of nearest neighbors and of the
            embedding; None for no such pictures.
        warnings: Warnings about the metrics, for example that a class has no test examples.
    """

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    examples: dict[str, int] = dataclasses.field(default_factory=dict)
    data: dict[str, str] = dataclasses.field(default_factory=dict)
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    pictures: dict[str, Html] = dataclasses.field(default_factory=dict)
    pictured_splits: tuple[Split, Split] | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)

    def warn(self, *sentences: str) -> None:
        """Log warnings about the metrics and add them to the results; skip warnings that the
        results already contain."""
        for sentence in sentences:
            if sentence not in self.warnings:
                self.warnings.append(sentence)
                logging.warning("%s", sentence)

    def score(self, name: str, right: Shaped[np.ndarray, " examples"]) -> float:
        """Record an accuracy in percent with its bootstrap interval, and return the accuracy.

        Args:
            name: The name of the metric, such as ``knn/top1``.
            right: For each test example, whether the prediction is correct or, for several
                predictions, the fraction of correct ones.
        """
        self.metrics[name] = 100.0 * float(np.mean(right))
        low, high = interval(right)
        self.intervals[name] = (100.0 * low, 100.0 * high)
        return self.metrics[name]

    def count(self, name: str, split: Split) -> None:
        """Record the size, the number of undecodable examples and the fingerprint of a split."""
        self.examples[name] = len(split)
        if split.skipped:
            self.examples[f"{name}_skipped"] = split.skipped
        self.data[name] = f"{split.name}:{split.fingerprint}"


@dataclasses.dataclass
class EvalContext:
    """The context of an evaluation: its configuration, encoder and data.

    Attributes:
        config: The resolved configuration of the evaluation.
        subject: The model under evaluation: a pretrained encoder or a trained classifier.
        mesh: The device mesh over which batches of images are split.
        read: The feature extractor, which reads selected examples and returns their features.
        workdir: The directory for the results. If the protocol trains a model, ``workdir`` is also
            the run directory of the training.
        untrained: A function that opens the encoder of ``subject`` with random weights, as a
            baseline; None if the model is a classifier or already untrained.
    """

    config: ConfigDict
    subject: PretrainedEncoder
    mesh: Mesh
    read: SplitFeatureExtractor
    workdir: epath.Path
    untrained: Callable[[], PretrainedEncoder] | None = None

    @property
    def data(self) -> ConfigDict:
        """The ``data`` block of the encoder's configuration, with the evaluation's overrides."""
        return self.subject.config.data

    @property
    def counts(self) -> tuple[int | None, int | None]:
        """The maximum numbers of training and test examples to use; None for all."""
        return self.config.data.train_examples, self.config.data.test_examples

    def test_splits(self, data: ConfigDict) -> tuple[str, ...]:
        """Return the candidate test splits in order of preference.

        If ``config.data.test_split`` is set, it is the only candidate. If
        ``config.data.test_split`` is None, the candidates are the split of the run's kNN probe and
        the splits in `TEST_SPLITS`, except the training split.
        """
        if self.config.data.test_split:
            return (self.config.data.test_split,)
        names = dict.fromkeys((self.subject.config.probe.split, *TEST_SPLITS))
        return tuple(name for name in names if name and name != data.split)

    def pair(
        self,
        results: EvalResults,
        data: ConfigDict | None = None,
        test_split: str | None = None,
        name: str = "",
    ) -> Pair:
        """Open training and test examples with matching classes, without extracting features.

        Args:
            results: The results, to which warnings are added.
            data: The config block that names the data; by default the attribute ``data``.
            test_split: The name of the test split; by default the first available one of
                `test_splits`.
            name: The name of the data set, as a prefix of warnings; empty for no prefix.

        Raises:
            UserError: A split is missing or has no labels, or the test split has classes that the
                training split lacks.
        """
        share, data = self.config.data.held_out, self.data if data is None else data
        pair = open_pair(
            data,
            (test_split,) if test_split else self.test_splits(data),
            chosen=bool(test_split or self.config.data.test_split),
            counts=self.counts,
            share=self.subject.config.probe.held_out if share is None else share,
            seed=self.config.seed,
        )
        results.warn(*(f"{name}: {note}" if name else note for note in pair.notes))
        return pair

    def test_part(self, results: EvalResults, classes: Classes) -> Part:
        """Open test examples for a classifier whose classes are already fixed.

        Args:
            results: The results, to which warnings are added.
            classes: The classes that the classifier predicts.

        Raises:
            UserError: No test split is available, or the classes of the test split do not match
                ``classes``.
        """
        notes: list[str] = []
        split, source = open_test(
            self.data, self.test_splits(self.data), notes=notes, names=classes.names
        )
        results.warn(*notes)
        if source is None:
            raise UserError(f"{notes[-1]}; set config.data.test_split")
        called = f"the split {split!r}"
        part, absent = open_part(self.data, split, source, self.counts[1], classes, called)
        if absent:
            results.warn(f"{called} has no image of {absent}")
        if bool(source.label_names) != bool(classes.names):
            nameless = called if classes.names else "the classifier"
            results.warn(f"{nameless} has no class names, so classes are matched by number")
        return part

    def select(self, split: Split, kind: str | None = None) -> Float[np.ndarray, "examples width"]:
        """Return the features of the given kind, such as ``patches``, for the examples of a split.

        The default kind is ``config.features``.
        """
        return self.subject.select(split.outputs, kind or self.config.features)


def both(context: EvalContext) -> tuple[Split, Split, EvalResults]:
    """Extract features of the training and test examples, and record the example counts.

    Collective: every process must call this.
    """
    results = EvalResults()
    train, test = read_pair(context, context.pair(results), results)
    return train, test, results


def read_pair(context: EvalContext, pair: Pair, results: EvalResults) -> tuple[Split, Split]:
    """Extract features of an opened training and test set, and record the example counts.

    Collective: every process must call this.
    """
    train, test = context.read(pair.train), context.read(pair.test)
    results.count("train", train)
    results.count("test", test)
    results.pictured_splits = (train, test)
    return train, test


def held_out(
    labels: Int[np.ndarray, " examples"],
    outputs: Float[np.ndarray, "examples width"],
    share: float,
    seed: int,
) -> tuple[Int[np.ndarray, " most"], Int[np.ndarray, " few"]]:
    """Split example indices into a training and a held-out subset.

    Hyperparameters are selected on the held-out subset. The split depends on ``seed`` but not on
    the order of the examples: they are first sorted by a random projection of their features.

    Args:
        labels: The class index of each example.
        outputs: The features whose random projection determines the order of the examples.
        share: The fraction to hold out, between 0 and 1. At least one example is held out.
        seed: The seed of the random projection and of the random split.

    Raises:
        UserError: The fraction ``share`` leaves no training examples.
    """
    rng = np.random.default_rng(seed)
    projected = outputs.astype(np.float64) @ rng.normal(size=outputs.shape[1])
    order = np.lexsort((labels, projected))[rng.permutation(len(labels))]
    count = max(1, round(share * len(labels)))
    if count >= len(labels):
        raise UserError(
            f"config.held_out={share} of {len(labels)} labeled training examples leaves none to "
            "train on; use more training examples or a smaller fraction"
        )
    return np.sort(order[count:]), np.sort(order[:count])


def accuracy(predictions: Any, labels: Int[np.ndarray, " examples"]) -> float:
    """Return the percentage of predictions that equal their labels."""
    return 100.0 * float(np.mean(jax.device_get(predictions) == labels))


def right_predictions(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
) -> dict[str, Bool[np.ndarray, " examples"]]:
    """Return a dict in which ``top1`` states, for each example, whether its label has the highest
    logit.

    With more than five classes, ``top5`` states whether the label has one of the five highest
    logits.
    """
    right = {"top1": logits.argmax(axis=1) == labels}
    if logits.shape[1] > 5:
        best = np.argpartition(-logits, 5, axis=1)[:, :5]
        right["top5"] = (best == labels[:, None]).any(axis=1)
    return right
