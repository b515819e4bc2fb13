"""What a protocol works on, and what it finds."""

import dataclasses
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from can_jax.errors import UserError
from can_jax.evaluate.examples import Reader, Split
from can_jax.evaluate.subject import Subject


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
    pictures: dict[str, str] = dataclasses.field(default_factory=dict)
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

    def train(self) -> Split:
        """The examples to learn from."""
        return self.read(self.data, self.data.split, self.config.data.train_examples)

    @property
    def test_split(self) -> str:
        """The name of the split to test on."""
        return self.config.data.test_split or self.subject.config.probe.split

    def test(self) -> Split:
        """The examples to test on."""
        return self.read(self.data, self.test_split, self.config.data.test_examples)

    def select(self, split: Split, kind: str | None = None) -> Float[np.ndarray, "examples width"]:
        """Features of a kind, by default that of the configuration."""
        return self.subject.select(split.found, kind or self.config.features)


def both(task: Task) -> tuple[Split, Split, Findings]:
    """Train and test examples, with the same classes, counted."""
    train, test, findings = task.train(), task.test(), Findings()
    findings.count("train", train)
    findings.count("test", test)
    findings.shown = (train, test)
    unknown = set(test.labels.tolist()) - set(train.labels.tolist())
    if unknown:
        raise UserError(
            f"the split {test.name!r} has {len(unknown)} classes that {train.name!r} has not, such "
            f"as {min(unknown)}"
        )
    if train.fingerprint == test.fingerprint:
        findings.warn(
            f"the splits {train.name!r} and {test.name!r} are the same examples: accuracies say "
            "nothing"
        )
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
