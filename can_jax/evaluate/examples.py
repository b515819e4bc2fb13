"""The examples of an evaluation: features of every one, counted, and what they were taken from."""

import dataclasses
import functools
import hashlib
import json

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from can_jax.data.evaluation import EvaluationSet
from can_jax.data.source import Source, open_source
from can_jax.errors import UserError
from can_jax.evaluate.subject import Subject
from can_jax.probes.features import Change, FeatureExtractor

ALL = 2**62


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of a split, as an encoder sees them.

    Attributes:
        name: of the split.
        found: class token and mean patch token, side by side; of a classifier the logits.
        labels: of each; -1 where unknown.
        numbers: of each in its source.
        source: that they are from.
        skipped: how many could not be decoded.
    """

    name: str
    found: Float[np.ndarray, "examples features"]
    labels: Int[np.ndarray, " examples"]
    numbers: Int[np.ndarray, " examples"]
    source: Source
    skipped: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, if known."""
        return self.source.label_names

    @functools.cached_property
    def fingerprint(self) -> str:
        """What tells one data set from another."""
        return fingerprint(self.source, self.labels)


def fingerprint(source: Source, labels: Int[np.ndarray, " examples"]) -> str:
    """Of a source's size and classes, of these labels, and of its first and last image."""
    ends, _ = source.read(np.array([0, source.examples - 1]))
    facts = [source.examples, list(source.label_names)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for part in (labels.astype(np.int32).tobytes(), *ends):
        digest.update(part)
    return digest.hexdigest()[:16]


class Reader:
    """Reads splits through an encoder; compiles once for all of them.

    Args:
        subject: the encoder.
        mesh: over which images are split.
        batch_size: images encoded at a time.
    """

    def __init__(self, subject: Subject, mesh: Mesh, batch_size: int):
        self._subject = subject
        self._extract = FeatureExtractor(subject.features, mesh, batch_size)

    def __call__(
        self,
        data: ConfigDict,
        split: str,
        count: int | None = None,
        change: Change | None = None,
        labelled: bool = True,
    ) -> Split:
        """Features of a split, every example counted once.

        Args:
            data: a block as in the configuration of a run.
            split: its name.
            count: of examples, evenly spread; all by default.
            change: what is done to the images before.
            labelled: leave out what has no label.

        Raises:
            UserError: none is left.
        """
        config = self._subject.config.copy_and_resolve_references()
        with config.unlocked(), config.ignore_type():
            config.data = data
            config.data.image_size = self._subject.config.data.image_size
        source = open_source(config.data, split)
        examples = EvaluationSet(config, source, count or ALL, labelled=labelled)
        what = "labelled image" if labelled else "image"
        if not len(examples):
            raise UserError(f"config.data: no {what} in the split {split!r}")
        found = self._extract(self._subject.parameters, examples, change)
        if not len(found.labels):
            raise UserError(f"config.data: no {what} of the split {split!r} can be decoded")
        skipped = len(examples) - len(found.labels)
        return Split(split, found.features, found.labels, found.numbers, source, skipped)
