"""Functions that evaluate an encoder or a classifier with an evaluation protocol."""

import functools
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from can_jax.checkpoint.run_directory import find_checkpoint
from can_jax.config.resolve import check_keys
from can_jax.config.validate import check_augment, check_data
from can_jax.distributed.mesh import make_mesh
from can_jax.encoders.pretrained import open_encoder
from can_jax.evaluate.page import picture
from can_jax.evaluate.protocols.base import EvalProtocol
from can_jax.evaluate.protocols.classifier import CARD, open_classifier
from can_jax.evaluate.protocols.registry import PROTOCOLS
from can_jax.evaluate.reports.pictures import map_chart, neighbor_grid, newest_panel
from can_jax.evaluate.reports.results import write_results
from can_jax.evaluate.split_features import SplitFeatureExtractor
from can_jax.evaluate.task import EvalContext, EvalResults
from can_jax.train.start import make_directory
from can_jax.utils.errors import UserError
from can_jax.utils.extras import require_input
from can_jax.utils.files import check_directory
from can_jax.utils.tensorflow import import_ahead
from can_jax.weights.descriptions import is_run

MAP = "Map of the embedding (t-SNE)"  # The title of a picture in the report.


def evaluate(
    config: ConfigDict, checkpoint: str, workdir: epath.Path, untrained: bool = False
) -> dict[str, Any]:
    """Evaluate an encoder with the protocol that ``config`` selects, and write the results.

    Collective: every process must call this.

    Args:
        config: The resolved configuration of the evaluation.
        checkpoint: The path of a pretraining run, an export, weights of another library, or a
            classifier that the protocol `classify` has trained.
        workdir: The directory for `results.json` and `report.html`. If the protocol trains a model,
            ``workdir`` is also the run directory of the training.
        untrained: Whether to evaluate the encoder with random instead of trained weights.

    Returns:
        The content of `results.json`.

    Raises:
        UserError: The configuration, the data or the checkpoint is invalid, or ``workdir`` cannot
            hold the results.
    """
    results, subject = measure(config, checkpoint, workdir, untrained)
    return write_results(workdir, results, config, subject)


def is_classifier(checkpoint: str) -> bool:
    """Return whether a checkpoint is a classifier that the protocol `classify` has trained. For a
    missing checkpoint, return False; `evaluate` reports the error."""
    try:
        return (find_checkpoint(checkpoint, "--checkpoint=")[0] / CARD).exists()
    except UserError:
        return False


def measure(
    config: ConfigDict,
    checkpoint: str,
    workdir: epath.Path,
    untrained: bool = False,
    pictures: bool = True,
) -> tuple[EvalResults, Any]:
    """Evaluate an encoder with the protocol that ``config`` selects, without writing results.

    A protocol that trains a model still writes its run to ``workdir``. Collective: every process
    must call this.

    Args:
        config: The resolved configuration of the evaluation.
        checkpoint: The path of a pretraining run, an export, weights of another library, or a
            classifier that the protocol `classify` has trained.
        workdir: The run directory of a protocol that trains a model; created if missing.
        untrained: Whether to evaluate the encoder with random instead of trained weights.
        pictures: Whether to draw the nearest neighbors and a map of the embedding, if the protocol
            returns ``pictured_splits``.

    Returns:
        The results, and the evaluated encoder or classifier.

    Raises:
        UserError: The configuration, the data or the checkpoint is invalid, or ``workdir`` cannot
            hold the results.
    """
    check_directory(workdir, "--workdir=")
    require_input()
    path, step = find_checkpoint(checkpoint, "--checkpoint=")
    protocol = PROTOCOLS.get(config.protocol)
    if not protocol.trains and is_run(workdir):
        raise UserError(
            f"--workdir={workdir} is a run directory; set --workdir to another directory for the "
            "results"
        )
    import_ahead()
    mesh = make_mesh(config.mesh)
    subject: Any
    classifier = (path / CARD).exists()
    if classifier:
        if not protocol.takes_classifier:
            takers = ", ".join(name for name, p in PROTOCOLS.items() if p.takes_classifier)
            raise UserError(
                f"--checkpoint={checkpoint} is a trained classifier, which only the protocol "
                f"{takers} accepts; set --checkpoint to the pretraining run of the encoder"
            )
        if untrained:
            raise UserError(
                f"--untrained applies to encoders, but --checkpoint={checkpoint} is a trained "
                "classifier"
            )
        subject = open_classifier(path, config, mesh, step)
    else:
        subject = open_encoder(checkpoint, untrained, config, mesh)
        if config.data.source is None and not is_run(path) and protocol.uses_data(config):
            raise UserError(
                f"--checkpoint={checkpoint} comes without a data set, since it is not a run "
                "directory: set --data=PATH or config.data.source"
            )
    check_used(subject.config, protocol, path)
    make_directory(workdir)
    extractor = SplitFeatureExtractor(subject, mesh, config.batch_size)
    initial = functools.partial(open_encoder, checkpoint, True, config, mesh)
    context = EvalContext(
        config, subject, mesh, extractor, workdir,
        untrained=None if untrained or classifier else initial,
    )  # fmt: skip
    results = protocol.run(context)
    if pictures:
        illustrate(context, results)
    if not untrained and (panel := newest_panel(path, step)):
        image = picture(panel, "reconstructions")
        title = "The latest reconstructions of the run"
        results.pictures[title if step is None else f"{title} up to step {step}"] = image
    return results, subject


def check_used(run: ConfigDict, protocol: EvalProtocol, path: epath.Path) -> None:
    """Validate the settings that an evaluation reads from the configuration of a pretraining run.

    Args:
        run: The configuration of the pretraining run, with the ``data`` block of the evaluation.
        protocol: The protocol, whose attribute `run_settings` lists the settings to check besides
            ``data``.
        path: The run directory, which is named in error messages.

    Raises:
        UserError: A setting is invalid; the message names the first invalid setting.
    """
    try:
        check_keys(run, ("data", *protocol.run_settings))
        check_data(run)
        if "augment" in protocol.run_settings:
            check_augment(run)
    except UserError as error:
        raise UserError(f"{path}/config.json: {error}") from error


def illustrate(context: EvalContext, results: EvalResults) -> None:
    """Add pictures of nearest neighbors and of the embedding to results that have
    ``pictured_splits``."""
    if results.pictured_splits is None:
        return
    grid = neighbor_grid(context, *results.pictured_splits)
    title = "Nearest neighbors"
    if (results.pictured_splits[1].labels >= 0).any():
        title += " (green frame: same class, red frame: other class)"
    results.pictures[title] = picture(grid, "nearest neighbors")
    results.pictures[MAP] = map_chart(context, results.pictured_splits[1])
