"""Pretraining with CAN: configuration checks, data, initial state and callbacks.

`can_jax.train.run` sets up and runs the training loop.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from can_jax.checkpoint.identity import has_checkpoints, read_identity
from can_jax.checkpoint.resume import check_changes, is_given, with_stored
from can_jax.checkpoint.run_directory import stored_config
from can_jax.config.inactive import inactive
from can_jax.config.resolve import from_json, resolve, to_json
from can_jax.data.pipeline.order import shares
from can_jax.data.pipeline.streaming_loader import START, open_stream
from can_jax.data.sources.labels import has_labels
from can_jax.data.sources.registry import open_source
from can_jax.distributed.hardware import attached_devices
from can_jax.distributed.mesh import batch_shards, make_mesh
from can_jax.distributed.runtime import assert_equal_across_processes
from can_jax.models.backbones import decoder_size, encoder_size
from can_jax.models.patch_embed import embedding_kind
from can_jax.models.variant import PLAIN, variant_of
from can_jax.monitoring import console
from can_jax.monitoring.run_log import RunLog
from can_jax.monitoring.trackers import check_trackers
from can_jax.monitoring.watchdog import LONG, section
from can_jax.objectives import active
from can_jax.optimizers.optimizer import peak_learning_rate
from can_jax.optimizers.schedules import learning_rate_schedule
from can_jax.train.callback import RunContext
from can_jax.train.callbacks import PretrainCallbacks, pending_evaluations
from can_jax.train.choices import what_fits
from can_jax.train.flops import train_flops_per_image
from can_jax.train.init_from import initial_weights
from can_jax.train.network import heads
from can_jax.train.pace import known_last_step
from can_jax.train.patch_statistics import Moments, patch_moments, whitening_of, with_map
from can_jax.train.run import run
from can_jax.train.run_length import RunLength, make_run_length
from can_jax.train.step import Step, TrainState, make_step
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.extras import require_input
from can_jax.utils.files import check_directory
from can_jax.utils.tensorflow import import_ahead

SAMPLE = 64  # streamed examples whose labels are examined


def pretrain(
    config: ConfigDict,
    workdir: epath.Path,
    given: Collection[str] = (),
    allowed: Collection[str] = (),
    **options: bool,
) -> None:
    """Pretrain a model; if the run directory holds a checkpoint, resume from it.

    Collective: every process must call this.

    Args:
        config: The configuration of a recipe, not yet resolved.
        workdir: The run directory, created if missing.
        given: The dotted config keys that the command line sets.
        allowed: The keys of `can_jax.checkpoint.resume.CHANGES` that this resume may change, such
            as `seed`.
        options: The flags ``profile`` and ``dump_hlo`` of `can_jax.train.run.run`.

    Raises:
        UserError: The configuration, the data or the run directory is invalid, or training
            diverged.
        Preempted: A signal such as SIGTERM ended the run before its last step or its last
            evaluation; the state was saved.
    """
    check_directory(workdir, "--workdir=")
    with RunLog() as log:
        training = prepare(config, workdir, given, allowed)
        with explained_memory(training.config):
            run(training, training.mesh, workdir, log, **options)


@contextlib.contextmanager
def explained_memory(config: ConfigDict) -> Iterator[None]:
    """Convert an out-of-memory error to a `UserError` that suggests settings that need less memory.

    Args:
        config: The resolved configuration of the run.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        devices = attached_devices()
        raise UserError(
            f"out of memory on {devices.kind} with config.batch_size={config.batch_size}, "
            f"config.accumulation.microbatches={config.accumulation.microbatches} and "
            f"config.model.remat={config.model.remat} ({one_line(error)[:120]}); "
            f"{what_fits(config, devices)}. can-jax plan prints the memory that the step needs"
        ) from error


def prepare(
    config: ConfigDict,
    workdir: epath.Path,
    given: Collection[str] = (),
    allowed: Collection[str] = (),
) -> "Pretraining":
    """Check a configuration, open its data, and return a `Pretraining` that is ready to run.

    Collective: every process must call this.

    Args:
        config: The configuration of a recipe, not yet resolved.
        workdir: The run directory, which need not exist yet.
        given: The dotted config keys that the command line sets.
        allowed: The keys of `can_jax.checkpoint.resume.CHANGES` that this resume may change, such
            as `seed`.

    Raises:
        UserError: A setting is invalid, or the data cannot be opened or does not match the
            settings.
    """
    require_input()
    config = continued(resolve(config), workdir, given, allowed)
    check_trackers(config.trackers)
    import_ahead()
    assert_equal_across_processes("configuration", to_json(config))
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    open_data: Any = open_stream if config.data.streaming else open_source
    with section("opening the data", LONG * config.stuck_after_seconds):
        source = open_data(config.data, config.data.split)
    check_labels(config, source)
    for key, reason in inactive(config, given):
        logging.warning("config.%s has no effect: %s", key, reason)
    warn_of_repeats(config, source)
    warn_of_unsplit_heads(config, mesh)
    times = make_run_length(config, source.examples)
    every = config.figures.every_steps
    if every and not times.figures_every and is_given("figures.every_steps", given):
        logging.warning(
            "config.figures.every_steps=%d has no effect: figures show predicted pixels or noise, "
            "which no objective of this run predicts", every,
        )  # fmt: skip
    if times.seconds is not None and (last := known_last_step(workdir, times.seconds)) is not None:
        times = times._replace(total=last)
    peak = peak_learning_rate(config)
    schedule = learning_rate_schedule(peak, times.warmup, times.schedule, config.schedule)
    step = make_step(config, schedule)
    return Pretraining(config, source, times, step, mesh, tuple(allowed))


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """A prepared pretraining run, which implements `can_jax.train.training.Training`."""

    config: ConfigDict
    source: Any
    times: RunLength
    step: Step
    mesh: Mesh
    allowed: tuple[str, ...] = ()

    def identity(self) -> None:
        """Return None, since pretraining stores no identity. Instead, `check_changes` compares the
        settings on a resume."""

    def stream(self) -> dict[str, Any]:
        """Return the seed, the batch size and the fingerprint of the data, for `check_stream`."""
        config = self.config
        settings = {"seed": config.seed, "batch_size": config.batch_size}
        return settings | {"data": self.source.fingerprint()}

    def facts(self) -> dict[str, Any]:
        """Return the batch size, length and cost of the run, by label, to print and store."""
        config, times = self.config, self.times
        flops = train_flops_per_image(config)
        return {
            "effective batch (images)": config.batch_size,
            **microbatch_facts(config),
            "views an image": config.augment.views,
            "peak learning rate": f"{peak_learning_rate(config):.4g}",
            **length_facts(config, times),
            "images of an epoch": times.examples,
            "analytic FLOPs of a step, an image": f"{flops:.3e}",
        }

    @functools.cached_property
    def moments(self) -> Moments:
        """The mean and covariance of the training patches. Collective: every process must read
        this property."""
        return patch_moments(self.config, self.source, self.mesh)

    def begin(self, state: TrainState, report: console.Reporter) -> TrainState:
        """Set the whitening map and the ``init_from`` weights, if configured, and return the state.

        Collective: every process must call this.
        """
        config = self.config
        if embedding_kind(config) == "whitened":
            fixed = whitening_of(config, self.moments)
            state.batch_stats = with_map(state.batch_stats, fixed)
            report.say(f"patches are whitened by the statistics of {self.moments.images:,} images")
        if source := config.init_from:
            variant = variant_of(config.model) if config.model.backbone == "vit" else PLAIN
            parameters, lines = initial_weights(
                source, state.parameters, self.mesh, variant, state.batch_stats,
                {"mean": list(config.augment.mean), "std": list(config.augment.std)},
            )  # fmt: skip
            state = self.step.started(state, parameters)
            for line in lines:
                report.say(line)
        return state

    def finished(self, workdir: epath.Path) -> bool:
        """Return whether the evaluations of the last step are complete.

        Collective: every process must call this.
        """
        return not pending_evaluations(self.times.total, self.times, workdir)

    def callbacks(self, run: RunContext) -> PretrainCallbacks:
        """Return the callback that logs metrics, runs the kNN probe and draws the figures."""
        return PretrainCallbacks(run, self.step, lambda: self.moments)


def continued(
    config: ConfigDict,
    workdir: epath.Path,
    given: Collection[str] = (),
    allowed: Collection[str] = (),
) -> ConfigDict:
    """Return the configuration with which a run starts or resumes.

    On a resume, config keys that did not exist when the run began get values that preserve the
    run's behavior.

    Args:
        config: The resolved configuration of this start.
        workdir: The run directory, which need not exist yet.
        given: The dotted config keys that the command line sets; their values in ``config`` are
            kept.
        allowed: The keys of `can_jax.checkpoint.resume.CHANGES` that this resume may change.

    Raises:
        UserError: The stored configuration cannot be read or is invalid, or this start changes a
            setting that a resume may not change.
    """
    path = workdir / "config.json"
    if not path.exists():
        return config
    stored = stored_config(workdir) or ""
    try:
        from_json(stored)
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    config, kept = with_stored(config, stored, given)
    for line in kept:
        logging.warning("%s", line)
    try:
        config = resolve(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    # `check_identity` rejects the directory of another kind of run later, with its own message.
    of_pretraining = read_identity(workdir) is None
    if of_pretraining and has_checkpoints(workdir):
        check_changes(config, stored, allowed)
    return config


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Check that the batch can be split evenly over the devices and the microbatches.

    Raises:
        UserError: The batch size is not a multiple of `batch_shards` times the number of
            microbatches.
    """
    devices, parts = batch_shards(mesh), config.accumulation.microbatches
    unit = devices * parts
    if config.batch_size % unit:
        below = config.batch_size // unit * unit
        nearest = " and ".join(str(size) for size in (below, below + unit) if size)
        pieces = f" and {parts} microbatches" if parts > 1 else ""
        raise UserError(
            f"config.batch_size={config.batch_size} cannot be split evenly over the {devices} "
            f"devices of mesh.data x mesh.fsdp{pieces}; valid sizes are, for example, {nearest}"
        )


def check_labels(config: ConfigDict, source: Any) -> None:
    """Check that the data has labels if an active objective needs them.

    Raises:
        UserError: An active objective needs labels, but the data has none.
    """
    blocks = config.objective
    objectives = active(blocks.to_dict()).items()
    needing = [name for name, objective in objectives if objective.needs_labels(blocks[name])]
    if needing and not _is_labeled(config, source):
        setting, remedy = needing[0], "its weight to 0"
        if setting == "contrastive":
            setting, remedy = "contrastive.supervised=True", "it to False"
        raise UserError(
            f"config.objective.{setting} needs labels, but the data has none: give labeled data, "
            f"or set {remedy}"
        )


def _is_labeled(config: ConfigDict, source: Any) -> bool:
    """Return whether the data has labels. Streamed data counts as labeled if any of the first
    `SAMPLE` examples has a label."""
    if source.parts:
        return bool(source.label_names)
    if not config.data.streaming:
        return has_labels(source)
    with contextlib.closing(source.stream(config.seed, SAMPLE, 0, 1, START)) as stream:
        return any(example.label >= 0 for example in itertools.islice(stream, SAMPLE))


def warn_of_repeats(config: ConfigDict, source: Any) -> None:
    """Log a warning if a data set, or a part of a mixture, has fewer images than a batch draws from
    it."""
    contrastive = config.objective.contrastive
    if contrastive.weight and not (contrastive.supervised or contrastive.exclude_copies):
        compared = config.batch_size
    else:
        compared = 0
    if config.accumulation.negatives == "microbatch":
        compared //= config.accumulation.microbatches
    parts = [("the data", source.examples, 1.0)]
    if source.parts:
        actual_shares = [actual for _, actual in shares(source.weights)]
        parts = [
            (f"part {i} of the mixture", part.examples, share)
            for i, (part, share) in enumerate(zip(source.parts, actual_shares, strict=True))
        ]
    for name, examples, share in parts:
        drawn = config.batch_size * share
        if drawn > examples:
            negatives = ", which the contrastive loss then treats as negatives of each other"
            logging.warning(
                "%s has %d images, fewer than the %d that each step draws from it: a batch "
                "contains copies of images%s; use a config.batch_size of at most %d",
                name, examples, round(drawn), negatives if compared * share > examples else "",
                config.batch_size * examples / drawn,
            )  # fmt: skip


def warn_of_unsplit_heads(config: ConfigDict, mesh: Mesh) -> None:
    """Log a warning if attention is not split over the mesh axis `tensor`."""
    tensor = mesh.shape["tensor"]
    sizes = {"model": encoder_size(config.model)} if config.model.backbone == "vit" else {}
    if "decoder" in heads(config):
        sizes["model.decoder"] = decoder_size(config.model)
    for name, size in sizes.items():
        if size.heads % tensor:
            logging.warning(
                "config.mesh.tensor=%d does not divide the %d attention heads of config.%s, so "
                "every device computes all heads; to split them, set config.mesh.tensor to a "
                "divisor of %d", tensor, size.heads, name, size.heads,
            )  # fmt: skip


def length_facts(config: ConfigDict, times: RunLength) -> dict[str, Any]:
    """Return the length of a run and of its warm-up, by label, to print and store."""
    if times.seconds is not None:
        return {
            "warm-up": f"{100 * times.warmup / times.schedule:.3g}% of the time",
            "time, all starts together": console.duration(times.seconds),
        }
    return {
        "warm-up steps": times.warmup,
        "steps": times.total,
        "epochs": f"{times.total * config.batch_size / times.examples:.4g}",
    }


def microbatch_facts(config: ConfigDict) -> dict[str, Any]:
    """Return the facts about gradient accumulation, by label; an empty dict without
    microbatches."""
    settings, views = config.accumulation, config.augment.views
    images = config.batch_size // settings.microbatches
    if settings.microbatches == 1:
        return {}
    facts: dict[str, Any] = {"images of a microbatch": images}
    if config.objective.contrastive.weight:
        compared = config.batch_size if settings.negatives == "batch" else images
        facts["negatives of a row"] = compared * views - views
    return facts
