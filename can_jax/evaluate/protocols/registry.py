"""From a configuration and an encoder to results: which protocol is which function."""

from typing import Any

from etils import epath
from ml_collections import ConfigDict

from can_jax.config.resolve import check_keys
from can_jax.config.validate import check_augment, check_data
from can_jax.data.evaluation.pairs import Part
from can_jax.distributed.mesh import make_mesh
from can_jax.encoders.pretrained import open_subject
from can_jax.evaluate.page import picture
from can_jax.evaluate.protocols import frozen
from can_jax.evaluate.protocols.classifier import CARD, ClassifierSubject, open_classifier
from can_jax.evaluate.protocols.finetune import classify
from can_jax.evaluate.protocols.robustness import Logits, robustness
from can_jax.evaluate.reports.pictures import map_svg, neighbour_grid, newest_panel
from can_jax.evaluate.reports.results import write_results
from can_jax.evaluate.split_features import Reader
from can_jax.evaluate.task import Findings, Task
from can_jax.train.run import make_directory
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import import_ahead

MAP = "Map of the embedding (t-SNE)"  # a picture's title
FROZEN = {
    "knn": frozen.knn,
    "linear": frozen.linear,
    "fewshot": frozen.fewshot,
    "health": frozen.representation_health,
}


def evaluate(
    config: ConfigDict, checkpoint: str, workdir: epath.Path, untrained: bool = False
) -> dict[str, Any]:
    """Measure an encoder by a protocol, and write down what was found.

    Args:
        config: resolved.
        checkpoint: where the encoder is from, or the classifier.
        workdir: for `results.json` and `report.html`, and for the run of a protocol that trains.
        untrained: take the encoder as it was before the first step.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: something a person can mend.
    """
    findings, subject = measure(config, checkpoint, workdir, untrained)
    return write_results(workdir, findings, config, subject)


def measure(
    config: ConfigDict,
    checkpoint: str,
    workdir: epath.Path,
    untrained: bool = False,
    pictures: bool = True,
) -> tuple[Findings, Any]:
    """As `evaluate`, writing nothing but what a protocol that trains needs: what was found, and of
    what. Without ``pictures``, frozen features are measured and not drawn."""
    place = epath.Path(checkpoint)
    if not place.exists():
        raise UserError(f"--checkpoint={checkpoint} does not exist")
    import_ahead()
    make_directory(workdir)
    mesh = make_mesh(config.mesh)
    subject: Any
    if (place / CARD).exists():
        if config.protocol != "robustness":
            raise UserError(
                f"--checkpoint={checkpoint} is a classifier, which only the protocol robustness "
                "takes; give the run of its encoder"
            )
        subject = open_classifier(place, config, mesh)
    else:
        subject = open_subject(checkpoint, untrained, config, mesh)
    check_used(subject.config, config.protocol, place)
    task = Task(config, subject, mesh, Reader(subject, mesh, config.batch_size))
    if config.protocol == "classify":
        findings = classify(task, workdir)
    elif config.protocol == "robustness":
        findings = Findings()
        if isinstance(subject, ClassifierSubject):
            clean, train = task.test_part(findings, subject.classes), None
        else:
            pair = task.pair(findings)
            clean, train = pair.test, pair.train
        robustness(task, clean, lambda: logits_of(task, train, findings), findings)
    else:
        findings = FROZEN[config.protocol](task)
        if pictures:
            illustrate(task, findings)
    if not untrained and (panel := newest_panel(place)):
        image = picture(panel, "reconstructions")
        findings.pictures["Reconstructions, as the run drew them last"] = image
    return findings, subject


def check_used(run: ConfigDict, protocol: str, place: epath.Path) -> None:
    """Check the settings of a run, beyond those of its encoder, that a protocol uses.

    Args:
        run: The configuration of the run, with the data of the evaluation in it.
        protocol: Of the evaluation.
        place: Of the run, for the message.

    Raises:
        UserError: Names the first setting that is wrong.
    """
    augment = {"classify": "augment.crop_aspect", "health": "augment"}
    try:
        check_keys(run, ("data", augment.get(protocol, "data")))
        check_data(run)
        if protocol == "health":
            check_augment(run)
    except UserError as error:
        raise UserError(f"{place}/config.json: {error}") from error


def illustrate(task: Task, findings: Findings) -> None:
    """Pictures of the examples that a protocol on frozen features has read."""
    if findings.shown is None:
        return
    grid = neighbour_grid(task, *findings.shown)
    title = "Nearest neighbours: green of the same class, red of another"
    findings.pictures[title] = picture(grid, "nearest neighbours")
    findings.pictures[MAP] = map_svg(task, findings.shown[1])


def logits_of(task: Task, train: Part | None, findings: Findings) -> Logits:
    """The logits of the classifier that is the subject, or of the best linear one on its features
    of ``train``."""
    if train is None:
        return lambda split: split.found
    learned = task.read(train)
    findings.count("train", learned)
    heads, kind, _ = frozen.best_heads(task, learned)
    findings.chosen["features"] = kind
    return lambda split: heads.logits(task.select(split, kind))[0]
