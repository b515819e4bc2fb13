"""The protocol `classify`: fine-tuning or linear probing as a training run that can be resumed."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from can_jax.checkpoint.identity import Identity
from can_jax.config.defaults import AUGMENT, MODEL, RECIPE
from can_jax.config.kinds import COUNT
from can_jax.config.resolve import ENCODER, resolve_encoder, without_refused
from can_jax.config.validate import check, check_rates
from can_jax.data.evaluation.examples import EvaluationSet
from can_jax.data.evaluation.pairs import Pair
from can_jax.data.sources.base import Source
from can_jax.evaluate.protocols.base import BELOW_ONE, FACTOR, RATE, EvalProtocol
from can_jax.evaluate.protocols.classifier import CARD
from can_jax.evaluate.protocols.classifier_step import ClassifierStep
from can_jax.evaluate.reports.provenance import classifier_identity
from can_jax.evaluate.split_features import fingerprint
from can_jax.evaluate.task import EvalContext, EvalResults, accuracy, right_predictions
from can_jax.features.calibration import calibration
from can_jax.features.extractor import FeatureExtractor
from can_jax.models.backbones import require_vit
from can_jax.models.can import grid_of
from can_jax.monitoring import console
from can_jax.monitoring.run_log import RunLog
from can_jax.monitoring.trackers import check_trackers
from can_jax.optimizers.optimizer import REFERENCE_BATCH, peak_learning_rate
from can_jax.optimizers.schedules import learning_rate_schedule
from can_jax.train.callback import PeriodicAction, RunContext
from can_jax.train.callbacks import Log
from can_jax.train.pretrain import check_batch
from can_jax.train.run import run
from can_jax.train.run_length import RunLength, make_run_length
from can_jax.train.step import TrainState
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.files import replace_text
from can_jax.utils.settings import Choice, Key, Number, Special, Switch, Table, Whole

ALPHA = Number(1e-3, 1e3, also=(0,))


def _is_randaugment(value: Any) -> bool:
    """Return whether a value is a valid tuple (operations, magnitude, standard deviation)."""
    kinds = (Whole(0, 15), Number(0, 10), Number(0, 10))
    return (
        isinstance(value, tuple | list)
        and len(value) == len(kinds)
        and all(kind.accepts(x) for kind, x in zip(kinds, value, strict=True))
    )


SETTINGS: Table = {
    "freeze_encoder": Key(
        False, Switch(), "Whether to freeze the encoder, so that only the head is trained."
    ),
    "head_norm": Key(
        "layer", Choice(("layer", "batch", "none")),
        "The normalization of the features before the head.",
    ),
    "total_epochs": Key(
        100.0, Number(above=0, high=1e9), "The length of the classifier's training.", unit="epochs"
    ),
    "warmup_epochs": Key(
        5.0, Number(0, 1e9), "The length of the learning-rate warm-up.", unit="epochs"
    ),
    "optimizer": Key("adamw", Choice(("adamw", "lars")), "The optimizer."),
    "learning_rate": Key(
        5e-4, RATE,
            "The peak learning rate for a batch of 256; it scales linearly with the batch "
            "size."
    ),
    "min_learning_rate": Key(
        1e-6, FACTOR,
        "The learning rate at the end of the schedule, before scaling by `layer_decay`."
    ),
    "weight_decay": Key(0.05, FACTOR, "The weight decay."),
    "layer_decay": Key(
        0.75, Number(above=0, high=1),
        "The ratio of a block's learning rate to that of the next block toward the head.",
    ),
    "beta2": Key(
        0.999, RECIPE["optimizer"]["beta2"].kind, "The decay rate of AdamW's second moment."
    ),
    "clip_norm": Key(0.0, Number(0, 1e9),
            "The maximum global norm of the gradient; 0 disables clipping."),
    "drop_path": Key(
        0.1, BELOW_ONE,
        "The stochastic-depth rate of the last block. The rates of the blocks rise linearly from 0."
    ),
    "mixup": Key(0.8, ALPHA, "The alpha of mixup's Beta distribution; 0 disables mixup."),
    "cutmix": Key(1.0, ALPHA, "The alpha of CutMix's Beta distribution; 0 disables CutMix."),
    "label_smoothing": Key(
        0.1, BELOW_ONE, "The probability mass that label smoothing spreads evenly over all classes."
    ),
    "randaugment": Key(
        (2, 9.0, 0.5),
        Special("(operations up to 15, magnitude up to 10, standard deviation up to 10)",
                _is_randaugment, tuple),
        "The number of RandAugment operations, their magnitude, and the standard deviation of the "
        "magnitude; 0 operations disable RandAugment.",
    ),
    "random_erasing": Key(
        0.25, BELOW_ONE, "The probability of erasing a random rectangle of an image."
    ),
    "crop_area": dataclasses.replace(AUGMENT["crop_area"], default=(0.08, 1.0)),
    "crop_interpolation": dataclasses.replace(AUGMENT["crop_interpolation"], default="bicubic"),
    "crop_fit": AUGMENT["crop_fit"],
    "ema_decay": Key(
        0.0, BELOW_ONE,
            "The decay rate of the moving average (EMA) of the parameters; 0 disables it. With an "
            "EMA, the averaged classifier is tested."
    ),
    "test_every_epochs": Key(
        5.0, Number(0, 1e9), "The interval between tests during training; 0 disables them.",
        unit="epochs"
    ),
    "save_every_steps": Key(500, COUNT, "The interval between checkpoints.", unit="steps"),
    "trackers": RECIPE["trackers"],
    "microbatches": Key(
        1, COUNT,
        "The number of microbatches whose gradients are accumulated in each step; BatchNorm, mixup "
            "and CutMix act on each microbatch separately."
    ),
    "remat": Key("none", MODEL["remat"].kind,
            "The rematerialization policy; see `model.remat` of pretraining."),
}  # fmt: skip
# Keys in a run's configuration, and the keys under `classify` that set them.
OWN_KEYS = {
    "model.remat": "remat",
    "accumulation.microbatches": "microbatches",
    "total_epochs": "total_epochs",
    "optimizer.warmup_epochs": "warmup_epochs",
    "probe.every_epochs": "test_every_epochs",
}


def check_classifier(config: ConfigDict) -> None:
    """Check the schedule and the learning rates if the protocol is `classify`."""
    settings = config.classify
    if config.protocol != "classify":
        return
    check(
        settings.warmup_epochs < settings.total_epochs,
        f"classify.warmup_epochs={settings.warmup_epochs:g} is not shorter than "
        f"config.classify.total_epochs={settings.total_epochs:g}: shorten the warm-up",
    )
    peak = settings.learning_rate * config.batch_size / REFERENCE_BATCH
    check(
        settings.min_learning_rate <= peak,
        f"classify.min_learning_rate={settings.min_learning_rate:g} is above the peak learning "
        f"rate {peak:g}, which is config.classify.learning_rate * batch_size / {REFERENCE_BATCH}",
    )
    if settings.optimizer == "adamw":
        check_rates("classify", settings, peak)


def classify(context: EvalContext) -> EvalResults:
    """Train a classifier head on a frozen or fine-tuned encoder, and test the classifier.

    Collective: every process must call this.

    Args:
        context: The evaluation context, in whose ``workdir`` the classifier's run is started or
            resumed.

    Raises:
        UserError: The data or a setting is invalid, ``workdir`` holds a different run, or the
            devices run out of memory.
    """
    config, settings = run_config(context), context.config.classify
    check_trackers(config.trackers)
    check_batch(config, context.mesh)
    results = EvalResults()
    pair = context.pair(results)
    source = pair.train.labeled()
    unlabeled = pair.train.source.examples - source.examples
    if unlabeled and context.counts[0] is None and pair.train.source is not pair.test.source:
        results.warn(
            f"{unlabeled} images of the split {config.data.split!r} have no label, so the "
            f"classifier is trained on the other {source.examples}"
        )
    try:
        times = make_run_length(config, source.examples)
    except UserError as error:
        raise UserError(with_own_keys(str(error))) from error
    peak = peak_learning_rate(config)
    share = settings.min_learning_rate / peak
    cosine = ConfigDict({"name": "cosine", "options": (("alpha", share),)})
    schedule = learning_rate_schedule(peak, times.warmup, times.total, cosine)
    classes = len(pair.classes)
    step = ClassifierStep(config, settings, context.config.features, classes, schedule)
    results.examples["train"] = source.examples
    for role, part in (("train", pair.train), ("test", pair.test)):
        results.data[role] = f"{part.name}:{fingerprint(part.source, part.labels)}"
    identity = classifier_identity(context, config, results, pair)
    training = Classification(context, config, pair, source, times, step, results, identity)
    with RunLog() as log, explained_memory(config):
        run(training, context.mesh, context.workdir, log)
    return results


@contextlib.contextmanager
def explained_memory(config: ConfigDict) -> Iterator[None]:
    """Convert the out-of-memory error of a device to a `UserError` that suggests settings."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        parts = config.accumulation.microbatches
        raise UserError(
            f"out of memory with config.batch_size={config.batch_size} and config.classify."
            f"microbatches={parts} ({one_line(error)[:120]}): try --config.classify.microbatches="
            f"{2 * parts}, which keeps the batch size, or --config.classify.remat=dots"
        ) from error


def with_own_keys(message: str) -> str:
    """Replace config keys of pretraining in a message by the corresponding keys of `classify`."""
    for key, own in OWN_KEYS.items():
        message = message.replace(f"config.{key}=", f"config.classify.{own}=")
    return message


def run_config(context: EvalContext) -> ConfigDict:
    """Return the resolved configuration of the run that trains a classifier."""
    encoder = context.subject
    return classifier_config(context.config, encoder.config, encoder.identity["path"])


def classifier_config(protocol: ConfigDict, encoder: ConfigDict, path: str) -> ConfigDict:
    """Return the resolved configuration of the run that trains a classifier.

    Args:
        protocol: The resolved configuration of the evaluation.
        encoder: The configuration of the encoder's run, with the data of the evaluation.
        path: The path of the encoder, for warnings.
    """
    settings = protocol.classify
    if settings.layer_decay != 1 or settings.drop_path:
        require_vit(encoder, "config.classify.layer_decay and config.classify.drop_path")
    config, lines = without_refused(encoder, but=("data", "augment", *ENCODER))
    for line in lines:
        logging.warning("%s: %s", path, line)
    with config.unlocked(), config.ignore_type():
        config.seed, config.batch_size = protocol.seed, protocol.batch_size
        config.total_steps = config.total_examples = config.total_minutes = None
        config.total_epochs = settings.total_epochs
        config.log_every_steps, config.trackers = 50, settings.trackers
        config.augment.update({k: v for k, v in settings.items() if k.startswith("crop_")}, views=1)
        config.model.remat = settings.remat
        config.optimizer.update(
            name="adamw", options=(),
            learning_rate=settings.learning_rate, weight_decay=settings.weight_decay,
            warmup_share=None, warmup_steps=None, warmup_examples=None,
            warmup_epochs=settings.warmup_epochs,
        )  # fmt: skip
        # A classifier computes no pretraining objective, but these settings must still be valid.
        for name, block in config.objective.items():
            block.weight = float(name == "reconstruction")
        config.model.mask_ratio = 0.5
        config.accumulation.microbatches = settings.microbatches
        if not settings.freeze_encoder and config.model.backbone == "vit":
            # As in MAE, position embeddings are trained, starting from a sine-cosine table.
            options = dict(config.model.backbone_options) | {"positions": "learned"}
            options.setdefault("position_grid", grid_of(config))
            config.model.backbone_options = tuple(options.items())
        config.checkpoint.update(every_steps=settings.save_every_steps, keep_last=2)
        config.probe.every_steps, config.probe.every_epochs = None, settings.test_every_epochs
        config.figures.every_steps = 0
    return resolve_encoder(config)


@dataclasses.dataclass(frozen=True)
class Classification:
    """The training job of a classifier, an implementation of `can_jax.train.training.Training`."""

    context: EvalContext
    config: ConfigDict
    pair: Pair
    source: Source
    times: RunLength
    step: ClassifierStep
    results: EvalResults
    depends_on: Identity
    allowed: tuple[str, ...] = ()

    def identity(self) -> Identity:
        """Return a dict of the encoder, the data and the settings on which the results depend."""
        return self.depends_on

    def stream(self) -> dict[str, Any]:
        """Return an empty dict, because `identity` already determines the stream of examples."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return the facts to print before training, such as the batch size and the steps."""
        frozen = self.context.config.classify.freeze_encoder
        return {
            "batch (images)": self.config.batch_size,
            "classes": self.step.classes,
            "peak learning rate": f"{peak_learning_rate(self.config):.4g}",
            "warm-up steps": self.times.warmup,
            "steps": self.times.total,
            "features": self.context.config.features,
            "encoder": "frozen" if frozen else "trained",
        }

    def begin(self, state: TrainState, report: console.Reporter) -> TrainState:
        """Return the initial state with the parameters of the encoder under evaluation."""
        return self.step.starting_from(self.context.subject.parameters["encoder"], state)

    def finished(self, workdir: epath.Path) -> bool:
        """Return False, so that re-running a completed run tests the classifier again."""
        return False

    def callbacks(self, run: RunContext) -> "Tester":
        """Return the callback that logs metrics and tests the classifier at intervals."""
        return Tester(self, run)


class Tester(Log):
    """A callback that logs metrics and tests a classifier on examples of the test split."""

    def __init__(self, training: Classification, run: RunContext):
        config, context = training.config, training.context
        super().__init__(run, training.step.flops_per_image)
        self._training, self._workdir = training, run.workdir
        self._part = training.pair.test
        self._examples = EvaluationSet(
            config, self._part.source, 0, labeled=True, only=self._part.examples
        )
        step = training.step
        self._logits = FeatureExtractor(step.logits, context.mesh, context.config.batch_size)

    def periodic_actions(self) -> list[PeriodicAction]:
        """Return the periodic test, or an empty list if ``test_every_epochs`` is 0.

        The classifier is not tested before the first step, because its head is still random.
        """
        every = self._times.probe_every
        return [PeriodicAction(every, self.test, saves_first=True)] if every else []

    def test(self, step: int, state: TrainState) -> None:
        """Measure and log the top-1 accuracy on the test split.

        Collective: every process must call this.
        """
        logits, _, labels = self._predict(state)
        top1 = accuracy(logits.argmax(axis=1), labels)
        self._writer.scalars(step, {"test/top1": top1})
        self.report.say(f"step {step}: top-1 accuracy {top1:.2f}% on {len(labels)} test images")

    def _predict(self, state: TrainState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return logits, data-source labels and class indices of the test examples. Collective."""
        outputs = self._logits(state, self._examples)
        return outputs.features, outputs.labels, self._part.numbering(outputs.labels)

    def on_train_end(self, state: TrainState, seconds: float) -> None:
        """Run the final test, and write ``classifier.json``, which `open_classifier` needs.

        Collective: every process must call this. Only the main process writes ``classifier.json``.
        """
        logits, own_labels, labels = self._predict(state)
        results, context = self._training.results, self._training.context
        name = "linear" if context.config.classify.freeze_encoder else "finetune"
        for key, right in right_predictions(logits, labels).items():
            results.score(f"{name}/{key}", right)
        measures = calibration(logits, labels, context.config.robustness.bins)
        results.metrics |= {f"{name}/{key}": value for key, value in measures.items()}
        results.examples["test"] = len(labels)
        of_test = fingerprint(self._part.source, own_labels)
        results.data["test"] = f"{self._part.name}:{of_test}"
        if len(self._examples) > len(labels):
            results.examples["test_skipped"] = len(self._examples) - len(labels)
        results.chosen["seconds"] = round(seconds, 1)
        if jax.process_index() == 0:
            card = {
                "classes": self._training.step.classes,
                "names": list(self._training.pair.classes.names),
                "numbers": self._training.pair.classes.labels.tolist(),
                "features": context.config.features,
                "settings": context.config.classify.to_dict(),
                "identity": self._training.identity(),
            }
            replace_text(self._workdir / CARD, json.dumps(card, indent=2) + "\n")


PROTOCOL = EvalProtocol(
    classify, SETTINGS, check_classifier, run_settings=("augment.crop_aspect",), trains=True
)
