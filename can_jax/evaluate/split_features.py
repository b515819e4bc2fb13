"""The examples of an evaluation: features of every one, counted, and what they were taken from."""

import dataclasses
import hashlib
import json

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from can_jax.data.evaluation.examples import EvaluationSet
from can_jax.data.evaluation.pairs import Part
from can_jax.data.sources.base import Source
from can_jax.data.sources.labels import Classes
from can_jax.encoders.pretrained import Subject
from can_jax.features.extractor import Change, FeatureExtractor
from can_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of a split, as an encoder sees them.

    Attributes:
        name: of the split.
        found: class token and mean patch token, side by side; of a classifier the logits.
        labels: the place of each one's class; -1 where unknown.
        numbers: of each in its source.
        source: that they are from.
        skipped: how many could not be decoded.
        known: the classes of the training examples.
        fingerprint: what tells one data set from another.
    """

    name: str
    found: Float[np.ndarray, "examples features"]
    labels: Int[np.ndarray, " examples"]
    numbers: Int[np.ndarray, " examples"]
    source: Source
    skipped: int
    known: Classes
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        """What tables call the classes, in the order of places."""
        return self.known.called


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

    def __call__(self, part: Part, change: Change | None = None, labelled: bool = True) -> Split:
        """Features of the chosen examples of a split, every one counted once.

        Args:
            part: the examples.
            change: what is done to the images before.
            labelled: leave out what has no label.

        Raises:
            UserError: none is left.
        """
        config = self._subject.config.copy_and_resolve_references()
        with config.unlocked(), config.ignore_type():
            config.data = part.data
            config.data.image_size = self._subject.config.data.image_size
        examples = EvaluationSet(config, part.source, 0, labelled=labelled, only=part.examples)
        what = "labelled image" if labelled else "image"
        found = self._extract(self._subject.parameters, examples, change)
        if not len(found.labels):
            raise UserError(f"config.data: no {what} of the split {part.name!r} can be decoded")
        labels = part.numbering(found.labels)
        if labelled and (labels < 0).any():
            raise UserError(f"the labels of the split {part.name!r} changed while it was read")
        return Split(
            name=part.name,
            found=found.features,
            labels=labels,
            numbers=found.numbers,
            source=part.source,
            skipped=len(examples) - len(found.labels),
            known=part.classes,
            fingerprint=fingerprint(part.source, found.labels),
        )
