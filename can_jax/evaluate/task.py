"""What a protocol works on, and what it finds."""

import dataclasses
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from can_jax.data.evaluation.pairs import TEST_SPLITS, Pair, Part, open_pair, open_part, open_test
from can_jax.data.sources.labels import Classes
from can_jax.encoders.pretrained import Subject
from can_jax.evaluate.page import Html
from can_jax.evaluate.split_features import Reader, Split
from can_jax.utils.errors import UserError


@dataclasses.dataclass
class Findings:
    """Of one protocol.

    Attributes:
        metrics: by name, in percent where it is an accuracy.
        examples: how many were learned from and tested on, and how many could not be decoded.
        data: what tells the data sets from others.
        chosen: settings that were chosen by held-out examples.
        tables: for the report: rows of values, by title.
        pictures: for the report: elements of a page, by title.
        shown: train and test examples to draw from.
        warnings: what a reader of the metrics has to know, a sentence each.
    """

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    examples: dict[str, int] = dataclasses.field(default_factory=dict)
    data: dict[str, str] = dataclasses.field(default_factory=dict)
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    pictures: dict[str, Html] = dataclasses.field(default_factory=dict)
    shown: tuple[Split, Split] | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)

    def warn(self, *sentences: str) -> None:
        """Log what a reader of the metrics has to know, once, and keep it for the results."""
        for sentence in sentences:
            if sentence not in self.warnings:
                self.warnings.append(sentence)
                logging.warning("%s", sentence)

    def count(self, name: str, split: Split) -> None:
        """Note a split that was read."""
        self.examples[name] = len(split)
        if split.skipped:
            self.examples[f"{name}_skipped"] = split.skipped
        self.data[name] = f"{split.name}:{split.fingerprint}"


@dataclasses.dataclass
class Task:
    """What a protocol works on.

    Attributes:
        config: of the evaluation, resolved.
        subject: the encoder.
        mesh: of the devices.
        read: reads splits of the data through the encoder.
    """

    config: ConfigDict
    subject: Subject
    mesh: Mesh
    read: Reader

    @property
    def data(self) -> ConfigDict:
        """The block that says where the data is."""
        return self.subject.config.data

    @property
    def counts(self) -> tuple[int | None, int | None]:
        """Training and test examples to choose; None for all."""
        return self.config.data.train_examples, self.config.data.test_examples

    def test_splits(self, data: ConfigDict) -> tuple[str, ...]:
        """The splits to test on, the preferred one first: the one that is configured alone, or else
        that of the run's probe and the usual ones."""
        if self.config.data.test_split:
            return (self.config.data.test_split,)
        names = dict.fromkeys((self.subject.config.probe.split, *TEST_SPLITS))
        return tuple(name for name in names if name and name != data.split)

    def pair(
        self,
        findings: Findings,
        data: ConfigDict | None = None,
        test_split: str | None = None,
        name: str = "",
    ) -> Pair:
        """Open training and test examples with the same classes, none of them read.

        Args:
            findings: get the warnings.
            data: the block that says where the data is, by default that of the evaluation.
            test_split: the split to test on, likewise.
            name: what warnings call the data, where there are several.

        Raises:
            UserError: a split is missing, has no labels or has unknown classes.
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
        findings.warn(*(f"{name}: {note}" if name else note for note in pair.notes))
        return pair

    def test_part(self, findings: Findings, classes: Classes) -> Part:
        """Open test examples alone, for a classifier of known classes.

        Args:
            findings: get the warnings.
            classes: of the classifier.
        """
        notes: list[str] = []
        split, source = open_test(
            self.data, self.test_splits(self.data), notes=notes, names=classes.names
        )
        findings.warn(*notes)
        if source is None:
            raise UserError(f"{notes[-1]}; set config.data.test_split")
        called = f"the split {split!r}"
        part, absent = open_part(self.data, split, source, self.counts[1], classes, called)
        if absent:
            findings.warn(f"{called} has no image of {absent}")
        if bool(source.label_names) != bool(classes.names):
            nameless = called if classes.names else "the classifier"
            findings.warn(f"{nameless} has no label_names, so classes are matched by number")
        return part

    def select(self, split: Split, kind: str | None = None) -> Float[np.ndarray, "examples width"]:
        """Features of a kind, by default that of the configuration."""
        return self.subject.select(split.found, kind or self.config.features)


def both(task: Task) -> tuple[Split, Split, Findings]:
    """Train and test examples, with the same classes, counted."""
    findings = Findings()
    pair = task.pair(findings)
    train, test = task.read(pair.train), task.read(pair.test)
    findings.count("train", train)
    findings.count("test", test)
    findings.shown = (train, test)
    return train, test, findings


def held_out(
    labels: Int[np.ndarray, " examples"], share: float, seed: int
) -> tuple[Int[np.ndarray, " most"], Int[np.ndarray, " few"]]:
    """Numbers of the examples to learn from, and of those by which settings are chosen. The same
    ones for the same seed."""
    order = np.random.default_rng(seed).permutation(len(labels))
    count = max(1, round(share * len(labels)))
    if count >= len(labels):
        raise UserError(
            f"config.held_out={share} of {len(labels)} labeled training examples leaves none to "
            "learn from: give more examples, or a smaller share"
        )
    return np.sort(order[count:]), np.sort(order[:count])


def accuracy(predictions: Any, labels: Int[np.ndarray, " examples"]) -> float:
    """In percent."""
    return 100.0 * float(np.mean(jax.device_get(predictions) == labels))


def accuracies(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
) -> dict[str, float]:
    """``top1`` and, of more than five classes, ``top5``; in percent."""
    found = {"top1": accuracy(logits.argmax(axis=1), labels)}
    if logits.shape[1] > 5:
        best = np.argpartition(-logits, 5, axis=1)[:, :5]
        found["top5"] = accuracy((best == labels[:, None]).any(axis=1), np.ones(len(labels), int))
    return found
