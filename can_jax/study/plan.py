"""What a study compares: its arms, and the configuration of each of their runs."""

import dataclasses
import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from can_jax.config.baselines import changed
from can_jax.config.defaults import RECIPE
from can_jax.config.durations import WARMUP, unset
from can_jax.config.evaluation import default_evaluation, resolve_evaluation
from can_jax.config.resolve import flatten, from_json, resolve, to_json
from can_jax.config.settings import Several, Whole, refuse
from can_jax.models.flops import train_flops_per_image
from can_jax.train.losses import heads
from can_jax.utils.errors import UserError

KEY_DIGITS = 10  # of the hash that tells runs apart
RATES = Several(RECIPE["optimizer"]["learning_rate"].kind, empty=False)
SEEDS = Whole(1, 10**6)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the things compared.

    Attributes:
        name: unlike all others.
        group: arms of one group are shown together.
        changes: of the study's recipe, by dotted key.
        like: the arm whose changes and learning rate it starts from.
        tuned: whether every learning rate of the study is tried, on the first seed.
        seeds: how many runs there are.
        equal_flops: trained for as many FLOPs as the study's reference, not as many images.
        untrained: the encoder is measured as it was before the first step.
        pictured: what the first seed's run drew is kept with its result.
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
    """One pretraining run, and what it is known by.

    Attributes:
        arm: it belongs to.
        config: resolved.
        key: of everything that bears on its result; where the data lies does not.
    """

    arm: Arm
    config: ConfigDict
    key: str

    @property
    def name(self) -> str:
        """Of its directory and its result."""
        words = "".join(c if c.isalnum() else " " for c in self.arm.name).split()
        return f"{'_'.join(words)}-{self.key}"


class Plan:
    """A study's arms in their order, and the configurations of their runs.

    Args:
        study: a configuration of `configs/study`.

    Raises:
        UserError: arms do not fit together.
    """

    def __init__(self, study: ConfigDict):
        self.name: str = study.name
        refuse("learning_rates", study.learning_rates, RATES)
        self.learning_rates: tuple[float, ...] = tuple(study.learning_rates)
        self.evaluation = resolve_evaluation(study.evaluation)
        self._recipe = study.recipe
        self.arms: dict[str, Arm] = {}
        for entry in study.arms:
            try:
                arm = Arm(**entry)
            except TypeError as error:
                raise UserError(f"config.arms: {entry}: {error}") from error
            refuse(f"arms: {arm.name}: seeds", arm.seeds, SEEDS)
            if arm.name in self.arms:
                raise UserError(f"config.arms: two are called {arm.name!r}")
            if arm.like is not None and arm.like not in self.arms:
                raise UserError(f"config.arms: {arm.name!r} is like {arm.like!r}, not an arm above")
            if not arm.tuned and arm.like is None:
                raise UserError(
                    f"config.arms: {arm.name!r} needs tuned=True, or the arm it is like"
                )
            self.arms[arm.name] = arm
        if study.reference not in self.arms:
            raise UserError(f"config.reference={study.reference!r} is none of config.arms")
        self.reference: str = study.reference

    def tuned_like(self, arm: Arm) -> Arm:
        """The arm whose learning rate is tuned for this one."""
        return arm if arm.tuned else self.tuned_like(self.arms[str(arm.like)])

    def changes(self, arm: Arm) -> dict[str, Any]:
        """Of the recipe, with those of the arms that it is like."""
        inherited = self.changes(self.arms[arm.like]) if arm.like else {}
        return inherited | arm.changes

    def run(self, arm: Arm, learning_rate: float, seed: int) -> Run:
        """One run of an arm."""
        own = {"optimizer.learning_rate": learning_rate, "seed": seed}
        config = resolve(changed(self._recipe, self.changes(arm) | own))
        if arm.equal_flops:
            reference = changed(self._recipe, self.changes(self.arms[self.reference]))
            ratio = flops(resolve(reference)) / flops(config)
            config.total_steps = round(config.total_steps * ratio)
        if arm.untrained:
            config.total_steps = 1
            unset(config, WARMUP, but="")
        content = [settings_of(config), settings_of(self.evaluation)]
        text = json.dumps([content, arm.untrained], sort_keys=True)
        return Run(arm, config, hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS])


def same_settings(result: dict[str, Any], run: Run, evaluation: ConfigDict) -> bool:
    """Return whether a result is that of a run and an evaluation.

    A key that the result lacks is newer than the result, and counts as what stands for that.
    """
    given, measured = result.get("config"), result.get("evaluation")
    if given is None or measured is None:
        return False
    stored = flatten(settings_of(from_json(json.dumps(given))))
    own = flatten(settings_of(run.config))
    # When a run is saved changes no result, nor does the optimizer where nothing is trained.
    idle = ("checkpoint.", "optimizer.") if run.arm.untrained else ("checkpoint.",)
    stored, own = (
        {key: value for key, value in settings.items() if not key.startswith(idle)}
        for settings in (stored, own)
    )
    default = flatten(settings_of(default_evaluation()))
    return stored == own and default | flatten(measured) == flatten(settings_of(evaluation))


def settings_of(config: ConfigDict) -> dict[str, Any]:
    """A configuration as plain JSON values, without where the data lies on this machine."""
    settings = json.loads(to_json(config))
    del settings["data"]["path"]
    return settings


def flops(config: ConfigDict) -> int:
    """Of a train step, for one image, by count."""
    return train_flops_per_image(config, heads(config))
