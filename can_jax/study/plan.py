"""The plan of a study: its arms, and the configuration of each run."""

import dataclasses
import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from can_jax.config.baselines import changed
from can_jax.config.defaults import RECIPE
from can_jax.config.durations import PROBE, TOTAL, WARMUP, unset, value_of
from can_jax.config.resolve import from_json, resolve, to_json
from can_jax.evaluate.config import default_evaluation, resolve_evaluation
from can_jax.study.measures import measures_of
from can_jax.train.flops import train_flops_per_image
from can_jax.utils.errors import UserError
from can_jax.utils.nested import flatten
from can_jax.utils.settings import Several, Whole, refuse

RATE = "optimizer.learning_rate"
TUNING = "linear"  # The protocol with an accuracy on held-out training examples.
KEY_DIGITS = 10  # The length of the hash that identifies a run.
RATES = Several(RECIPE["optimizer"]["learning_rate"].kind, empty=False)
SEEDS = Whole(1, 10**6)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A variant of the recipe that a study compares with other variants.

    Attributes:
        name: The unique name of the arm.
        group: The group under which the report lists the arm.
        changes: The changes to the study's recipe, by dotted key. A learning rate in ``changes``
            replaces the inherited learning rate.
        like: The name of the arm whose changes this arm inherits, or None. An arm can inherit only
            from an arm that precedes it in the study. An arm that is not tuned also inherits the
            learning rate.
        tuned: Whether to select the learning rate by trial instead of inheriting it. All rates of
            the study are tried with seed 0. If the study has only one rate, this rate is used
            without a trial.
        seeds: The number of runs at the selected learning rate, with the seeds 0, 1 and so on.
        equal_flops: Whether to train for as many FLOPs as the reference arm, instead of for as many
            images.
        untrained: Whether to evaluate the encoder with its random initial weights, as a baseline.
        pictured: Whether to store pictures with the result of the run with seed 0.
    """

    name: str
    group: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    like: str | None = None
    tuned: bool = False
    seeds: int = 1
    equal_flops: bool = False
    untrained: bool = False
    pictured: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """A pretraining run of an arm.

    Attributes:
        arm: The arm to which the run belongs.
        config: The resolved configuration of the run.
        key: A hash of the settings of the run and of its evaluation, without `data.path`.
    """

    arm: Arm
    config: ConfigDict
    key: str

    @property
    def name(self) -> str:
        """The name of the run directory, and of the result file without suffix."""
        words = "".join(c if c.isalnum() else " " for c in self.arm.name).split()
        return f"{'_'.join(words)}-{self.key}"


class Plan:
    """The arms of a study in their order, and the configurations of their runs.

    Args:
        study: The configuration of a study, such as those in `configs/study`. Optional keys are
            ``logged`` and ``headline``, see `measures_of`.

    Raises:
        UserError: An arm is invalid, the reference is not an arm, or the recipe has no kNN probe.
            An arm whose ``like`` names no preceding arm is invalid. The evaluation protocol has no
            metrics to compare, or no accuracy by which to select one of several learning rates. A
            metric to compare does not exist.
    """

    def __init__(self, study: ConfigDict):
        self.name: str = study.name
        refuse("learning_rates", study.learning_rates, RATES)
        self.learning_rates: tuple[float, ...] = tuple(study.learning_rates)
        self.evaluation = resolve_evaluation(study.evaluation)
        self.measures = measures_of(
            self.evaluation.protocol, dict(study.get("logged", {})), study.get("headline")
        )
        if len(self.learning_rates) > 1 and self.evaluation.protocol != TUNING:
            raise UserError(
                f"config.learning_rates={self.learning_rates}: the evaluation protocol "
                f"{self.evaluation.protocol!r} has no held-out accuracy by which to select a "
                f"learning rate; give one learning rate, or use the protocol {TUNING!r}"
            )
        self._recipe = study.recipe
        if not any(value_of(self._recipe, key) for key in PROBE):
            raise UserError(
                "config.recipe.probe is off, but the report of a study shows its kNN accuracy; set "
                f"{' or '.join(f'config.recipe.{key}' for key in PROBE)}"
            )
        self.arms: dict[str, Arm] = {}
        for entry in study.arms:
            try:
                arm = Arm(**entry)
            except TypeError as error:
                raise UserError(f"config.arms: {entry}: {error}") from error
            refuse(f"arms: {arm.name}: seeds", arm.seeds, SEEDS)
            if arm.name in self.arms:
                raise UserError(f"config.arms: two arms are named {arm.name!r}: rename one")
            if arm.like is not None and arm.like not in self.arms:
                raise UserError(
                    f"config.arms: {arm.name!r}: like={arm.like!r} is not the name of an earlier "
                    "arm"
                )
            if "seed" in arm.changes:
                raise UserError(
                    f"config.arms: {arm.name!r}: `changes` cannot set the seed; `seeds`=N "
                    "gives N runs, with the seeds from 0 to N - 1"
                )
            if arm.equal_flops and value_of(self._recipe, "total_minutes") is not None:
                raise UserError(
                    f"config.arms: {arm.name!r}: equal_flops=True needs a length in steps, epochs "
                    "or images, but config.recipe.total_minutes is set"
                )
            if arm.tuned and RATE in self.changes(arm):
                raise UserError(
                    f"config.arms: {arm.name!r}: `changes`, or those of `like`, set {RATE}, but "
                    "tuned=True takes it from config.learning_rates: remove it, or set `like` and "
                    "tuned=False"
                )
            if not arm.tuned and arm.like is None:
                raise UserError(
                    f"config.arms: {arm.name!r}: tuned=False takes the learning rate of the arm "
                    "that `like` names: set `like` to an earlier arm, or set tuned=True"
                )
            self.arms[arm.name] = arm
        if study.reference not in self.arms:
            raise UserError(f"config.reference={study.reference!r} is not the name of an arm")
        self.reference: str = study.reference

    def tuned_like(self, arm: Arm) -> Arm:
        """Return the tuned arm whose learning rate ``arm`` inherits, or ``arm`` itself if it is
        tuned."""
        return arm if arm.tuned else self.tuned_like(self.arms[str(arm.like)])

    def changes(self, arm: Arm) -> dict[str, Any]:
        """Return the changes of an arm to the recipe by dotted key, including inherited ones."""
        inherited = self.changes(self.arms[arm.like]) if arm.like else {}
        return inherited | arm.changes

    def run(self, arm: Arm, learning_rate: float, seed: int) -> Run:
        """Return the run of an arm with a given learning rate and seed."""
        own = {RATE: learning_rate, "seed": seed} | self.changes(arm)
        config = resolve(changed(self._recipe, own))
        if arm.equal_flops:
            reference = changed(self._recipe, self.changes(self.arms[self.reference]))
            ratio = train_flops_per_image(resolve(reference)) / train_flops_per_image(config)
            with config.ignore_type():
                for key in TOTAL:
                    if (length := config[key]) is not None:
                        exact = length * ratio
                        config[key] = round(exact) if isinstance(length, int) else exact
        if arm.untrained:
            unset(config, (*TOTAL, *WARMUP), but="")
            with config.ignore_type():
                config.total_steps = 1
        content = [settings_of(config), settings_of(self.evaluation)]
        text = json.dumps([content, arm.untrained], sort_keys=True)
        return Run(arm, config, hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS])


def same_settings(result: dict[str, Any], run: Run, evaluation: ConfigDict) -> bool:
    """Return True if a stored result was computed with the settings of a run and an evaluation.

    Settings that do not affect the result are ignored. Keys that are missing in the result of an
    older package version get the values that reproduce the behavior of that version.
    """
    given, measured = result.get("config"), result.get("evaluation")
    if given is None or measured is None:
        return False
    stored = flatten(settings_of(from_json(json.dumps(given))))
    own = flatten(settings_of(run.config))
    idle: tuple[str, ...] = ("checkpoint.",)  # Settings that do not affect the result.
    if run.arm.untrained:
        idle += ("optimizer.",)
    if not run.config.data.streaming:
        idle += ("data.shards_at_once",)
    stored, own = (
        {key: value for key, value in settings.items() if not key.startswith(idle)}
        for settings in (stored, own)
    )
    default = flatten(settings_of(default_evaluation()))
    return stored == own and default | flatten(measured) == flatten(settings_of(evaluation))


def settings_of(config: ConfigDict) -> dict[str, Any]:
    """Return a configuration as plain JSON values, without the local path of the data."""
    settings = json.loads(to_json(config))
    del settings["data"]["path"]
    return settings
