"""Extraction of an encoder's features for the examples of a split."""

import dataclasses
import hashlib
import json
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from can_jax.data.evaluation.examples import EvaluationSet
from can_jax.data.evaluation.pairs import Part
from can_jax.data.sources.base import Source
from can_jax.data.sources.labels import Classes
from can_jax.features.extractor import Change, FeatureExtractor
from can_jax.utils.errors import UserError


@runtime_checkable
class Featurizer(Protocol):
    """The interface that `SplitFeatureExtractor` requires of a model."""

    @property
    def config(self) -> ConfigDict:
        """The configuration of the model."""

    @property
    def parameters(self) -> Any:
        """The parameters of the model, which are passed to `features`."""

    def features(self, parameters: Any, images: Any) -> Any:
        """Return the features of uint8 images as an array (images, width)."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The features, labels and provenance of the examples of one split.

    Attributes:
        name: The name of the split, such as ``test``.
        outputs: The outputs of `Featurizer.features`: for an encoder, the concatenated class token
            and mean patch token; for a trained classifier, the logits.
        labels: The class index of each example; -1 where unknown.
        indices: The index of each example in its source.
        source: The data source from which the examples were read.
        skipped: The number of examples that could not be decoded.
        training_classes: The classes of the training data, which define the class indices.
        fingerprint: A digest that identifies the images and labels; see `fingerprint`.
    """

    name: str
    outputs: Float[np.ndarray, "examples features"]
    labels: Int[np.ndarray, " examples"]
    indices: Int[np.ndarray, " examples"]
    source: Source
    skipped: int
    training_classes: Classes
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        """The display name of each class, in the order of class indices."""
        return self.training_classes.display_names


def fingerprint(source: Source, labels: Int[np.ndarray, " examples"]) -> str:
    """Return a digest of ``labels`` and of a source's size, class names, first and last image."""
    ends, _ = source.read(np.array([0, source.examples - 1]))
    header = [source.examples, list(source.label_names)]
    digest = hashlib.sha256(json.dumps(header).encode())
    for part in (labels.astype(np.int32).tobytes(), *ends):
        digest.update(part)
    return digest.hexdigest()[:16]


class SplitFeatureExtractor:
    """A feature extractor that compiles the encoder once and uses it for several splits.

    Args:
        subject: The pretrained encoder, or another model with the interface `Featurizer`.
        mesh: The device mesh over which each batch of images is split.
        batch_size: The number of images per batch, rounded up to a multiple of the number of batch
            shards.
    """

    def __init__(self, subject: Featurizer, mesh: Mesh, batch_size: int):
        self._subject = subject
        self._extract = FeatureExtractor(subject.features, mesh, batch_size)

    def __call__(self, part: Part, change: Change | None = None, labeled: bool = True) -> Split:
        """Return the features of the selected examples of a split, each example exactly once.

        Collective: every process must call this.

        Args:
            part: The selected examples of the split, whose images are not read yet.
            change: A function, such as a corruption, that maps a batch of images and their indices
                to the images for the encoder; None for no change.
            labeled: Whether to skip examples without a label; if False, labels are not required.

        Raises:
            UserError: No selected example can be used, or labels changed while the split was read.
        """
        config = self._subject.config.copy_and_resolve_references()
        with config.unlocked(), config.ignore_type():
            config.data = part.data
            config.data.image_size = self._subject.config.data.image_size
        examples = EvaluationSet(config, part.source, 0, labeled=labeled, only=part.examples)
        what = "labeled image" if labeled else "image"
        outputs = self._extract(self._subject.parameters, examples, change)
        if not len(outputs.labels):
            raise UserError(f"config.data: no {what} of the split {part.name!r} can be decoded")
        labels = part.numbering(outputs.labels)
        if labeled and (labels < 0).any():
            raise UserError(f"the labels of the split {part.name!r} changed while it was read")
        return Split(
            name=part.name,
            outputs=outputs.features,
            labels=labels,
            indices=outputs.indices,
            source=part.source,
            skipped=len(examples) - len(outputs.labels),
            training_classes=part.classes,
            fingerprint=fingerprint(part.source, outputs.labels),
        )
