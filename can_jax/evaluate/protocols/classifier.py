"""The trained classifier as the model under evaluation, and a function that restores it."""

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from can_jax.checkpoint.identity import differences, read_identity
from can_jax.checkpoint.run_directory import newest_state, read_encoder
from can_jax.data.sources.labels import Classes
from can_jax.encoders.pretrained import PretrainedEncoder, changed, identity_of, with_normalization
from can_jax.evaluate.protocols.classifier_step import ClassifierStep
from can_jax.train.network import encoder_network
from can_jax.train.step import NOT_TRAINED, abstract_state
from can_jax.utils.errors import UserError

CARD = "classifier.json"  # Describes the head of a finished run, so that it can be evaluated.


@dataclasses.dataclass(frozen=True)
class ClassifierSubject(PretrainedEncoder):
    """A trained classifier with the interface of an encoder. The logits serve as the features.

    The inherited attribute `parameters` holds the classifier's training state.

    Attributes:
        step: The object that defines the classifier's forward pass.
        classes: The classes of the classifier's training data, in the order of the logits.
    """

    step: ClassifierStep
    classes: Classes

    def features(self, parameters: Any, images: Any) -> Any:
        """Return the logits of uint8 images."""
        return self.step.logits(parameters, images)


def open_classifier(
    workdir: epath.Path, changes: ConfigDict, mesh: Mesh, at: int | None = None
) -> ClassifierSubject:
    """Restore the classifier of a finished `classify` run.

    Args:
        workdir: The run directory, which contains the file ``classifier.json``.
        changes: The resolved configuration of the evaluation, whose data and model settings
            override those of the run. With ``model.average=False``, the moving average (EMA) of the
            parameters is dropped, so that the trained parameters are evaluated.
        mesh: The device mesh on which to place the parameters.
        at: The step of the checkpoint to restore; by default the latest valid checkpoint.

    Raises:
        UserError: The file ``classifier.json`` does not belong to the current run in ``workdir``,
            or the checkpoint or a model setting is invalid.
    """
    card = json.loads((workdir / CARD).read_text())
    run = with_normalization(read_encoder(workdir), changes.model, workdir)
    config = changed(run, changes)
    settings = changes.classify.copy_and_resolve_references()
    with settings.ignore_type():
        settings.update(card["settings"])
    step = ClassifierStep(config, settings, card["features"], card["classes"], NOT_TRAINED)
    newest, state = newest_state(workdir, abstract_state(step, mesh), step=at)
    if not changes.model.average:
        optimizer = {name: part for name, part in state.optimizer.items() if name != "average"}
        state = dataclasses.replace(state, optimizer=optimizer)
    names = tuple(card["names"][: card["classes"]])
    labels = np.array(card.get("numbers", range(card["classes"])), np.int64)
    classes = Classes(labels, names if len(names) == len(labels) else ())
    identity = identity_of(workdir, newest, config, state.parameters)
    if trained := read_identity(workdir):
        if lines := differences(card.get("identity", {}), trained):
            raise UserError(
                f"{workdir}: {CARD} describes the previous run in this directory, not the current "
                f"run: {lines[0]}; finish the current run, which replaces this file"
            )
        identity["trained_from"] = trained["encoder"]
    graph = nnx.graphdef(encoder_network(config))
    return ClassifierSubject(config, state, graph, identity, step, classes)
