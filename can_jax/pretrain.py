"""The pretraining run, top to bottom."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from can_jax.checkpoint import Checkpointer
from can_jax.config import flatten, resolve, to_json
from can_jax.data.batch import batch_shapes
from can_jax.data.source import open_source
from can_jax.data.streaming import open_loader, open_stream
from can_jax.errors import Preempted, UserError
from can_jax.files import replace_text
from can_jax.forward import heads
from can_jax.initial import initial_weights
from can_jax.lock import run_lock
from can_jax.loop import Loop, Progress
from can_jax.observe import console
from can_jax.observe.flops import train_flops_per_image
from can_jax.observe.metrics import MetricWriter
from can_jax.observe.watchdog import Watchdog
from can_jax.observers import Observers, unseen
from can_jax.optimizer import learning_rate_schedule, peak_learning_rate
from can_jax.parallel.mesh import batch_sharding, batch_shards, make_mesh
from can_jax.parallel.replicas import ReplicaCheck
from can_jax.parallel.runtime import Stopping, demand_same, environment, meeting
from can_jax.step import (
    Step,
    TrainState,
    abstract_state,
    compile_train_step,
    initialize,
    make_step,
)
from can_jax.timetable import Timetable, make_timetable


def pretrain(config: ConfigDict, workdir: epath.Path) -> None:
    """Train as the configuration says, going on where the run directory ends.

    Args:
        config: a recipe's configuration, checked here.
        workdir: the run directory, made if missing.

    Raises:
        UserError: something a person can mend; found before anything is compiled.
        Preempted: SIGTERM came; the state is saved.
    """
    config = resolve(config)
    demand_same("configuration", to_json(config))
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    open_data: Any = open_stream if config.data.streaming else open_source
    source = open_data(config.data, config.data.split)
    check_labels(config, source)
    times = make_timetable(config, source.examples)
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(contextlib.closing(Stopping()))
        make_directory(workdir)
        stack.enter_context(run_lock(workdir))
        checkpoints = stack.enter_context(contextlib.closing(open_checkpoints(config, workdir)))
        first = first_step(checkpoints, times, workdir)
        report = stack.enter_context(contextlib.closing(console.Reporter(first, times.total)))
        if first == times.total and not unseen(first, times, workdir):
            report.say(f"{workdir} has already finished its {first} steps; nothing to do")
            return
        with writing(workdir):
            note_run(config, workdir, mesh, times, report)

        schedule = learning_rate_schedule(peak_learning_rate(config), times.warmup, times.total)
        step = make_step(config, schedule)
        abstract = abstract_state(step, mesh)
        report.say(console.parameter_table(abstract.parameters))
        progress = Progress()
        if not first:
            state = initialize(step, abstract)
            if config.init_from:
                state.parameters, lines = initial_weights(config.init_from, state.parameters, mesh)
                for line in lines:
                    report.say(line)
        else:
            with meeting("restoring the checkpoint"):
                first, state, run = checkpoints.restore(first, abstract)
            progress = Progress.from_json(run)
            report.say(f"resumed from the checkpoint of step {first}")
        with writing(workdir):
            writer = stack.enter_context(contextlib.closing(MetricWriter(workdir, after=first)))
        observers = Observers(step, source, mesh, times, workdir, writer, report)
        observers.look_first(first, state)
        if first < times.total:
            drawn, most = first + progress.passed_over, times.total * (1 + config.spike.rewinds)
            loop = Loop(
                step=step,
                loader=open_loader(config, source, mesh, drawn, most, progress.loader),
                compiled=compile_timed(step, abstract, mesh, report),
                abstract=abstract,
                total=times.total,
                workdir=workdir,
                checkpoints=checkpoints,
                observers=observers,
                stopping=stopping,
                watchdog=stack.enter_context(
                    contextlib.closing(Watchdog(config.stuck_after_seconds))
                ),
                replicas=ReplicaCheck(abstract, mesh) if config.check_replicas else None,
                progress=progress,
            )
            report.start_bar()
            finish(loop(first, state), times.total, checkpoints)
        observers.conclude(progress.seconds)


def finish(last: int, total: int, checkpoints: Checkpointer) -> None:
    """Wait for the last checkpoint.

    Raises:
        UserError: it could not be written.
        Preempted: it is not the end of the run.
    """
    with meeting("finishing the checkpoint"):
        saved = checkpoints.wait()
    if not saved:
        raise UserError(f"step {last} was reached, but could not be saved; see the line above")
    if last < total:
        raise Preempted(f"stopped by SIGTERM; step {last} is saved, start again to go on")


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """The batch divides over the devices."""
    devices, parts = batch_shards(mesh), config.accumulation.microbatches
    unit = devices * parts
    if config.batch_size % unit:
        below = config.batch_size // unit * unit
        nearest = " and ".join(str(size) for size in (below, below + unit) if size)
        pieces = f" and {parts} microbatches" if parts > 1 else ""
        raise UserError(
            f"config.batch_size={config.batch_size} does not divide over the {devices} devices of "
            f"mesh.data x mesh.fsdp{pieces}; the nearest that would: {nearest}"
        )


def check_labels(config: ConfigDict, source: Any) -> None:
    """The supervised contrastive loss has labels to learn from."""
    contrastive = config.objective.contrastive
    wanted = contrastive.weight and contrastive.supervised
    if wanted and source.labels is not None and not (source.labels >= 0).any():
        raise UserError(
            "config.objective.contrastive.supervised=True needs labels, and the data has none"
        )


def open_checkpoints(config: ConfigDict, workdir: epath.Path) -> Checkpointer:
    """The run directory's checkpoints."""
    settings = config.checkpoint
    return Checkpointer(workdir / "checkpoints", settings.keep_last, settings.keep_every_steps)


@contextlib.contextmanager
def writing(workdir: epath.Path) -> Iterator[None]:
    """Around what writes to the run directory before the run: it can be written, or is no use."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from error


def make_directory(workdir: epath.Path) -> None:
    """The run directory, which has to be one that can be written."""
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        trial = workdir / f".writable_{jax.process_index()}"  # other processes try, too
        trial.write_text("")
        trial.unlink()


def first_step(checkpoints: Checkpointer, times: Timetable, workdir: epath.Path) -> int:
    """How many steps the run directory holds already."""
    done = checkpoints.newest_whole() or 0
    if done > times.total:
        raise UserError(
            f"--workdir={workdir} holds a checkpoint of step {done}, past the end of this run at "
            f"{times.total}: make the run longer, or give another --workdir"
        )
    return done


def note_run(
    config: ConfigDict, workdir: epath.Path, mesh: Mesh, times: Timetable, report: console.Reporter
) -> None:
    """Print and store what is about to run; the first process does."""
    if jax.process_index():
        return
    flops = train_flops_per_image(config, heads(config))
    facts = {
        "effective batch (images)": config.batch_size,
        **microbatch_facts(config),
        "views an image": config.augment.views,
        "peak learning rate": f"{peak_learning_rate(config):.4g}",
        "warm-up steps": times.warmup,
        "steps": times.total,
        "epochs": f"{times.total * config.batch_size / times.examples:.4g}",
        "images of an epoch": times.examples,
        "analytic FLOPs of a step, an image": f"{flops:.3e}",
        "run directory": str(workdir),
    }
    report.say(console.device_table(mesh))
    report.say(console.fact_table("Run", facts))
    before = workdir / "config.json"
    if before.exists():
        old, new = (flatten(json.loads(text)) for text in (before.read_text(), to_json(config)))
        for key in sorted(new.keys() | old.keys()):
            if old.get(key) != new.get(key):
                report.say(f"changed since this run began: {key} {old.get(key)} -> {new.get(key)}")
    replace_text(before, to_json(config) + "\n")
    stored = environment(mesh) | {"run": facts}
    replace_text(workdir / "environment.json", json.dumps(stored, indent=2) + "\n")


def microbatch_facts(config: ConfigDict) -> dict[str, Any]:
    """What accumulation of gradients does to the batch, if it is on."""
    settings, views = config.accumulation, config.augment.views
    images = config.batch_size // settings.microbatches
    if settings.microbatches == 1:
        return {}
    facts: dict[str, Any] = {"images of a microbatch": images}
    if config.objective.contrastive.weight:
        compared = config.batch_size if settings.negatives == "batch" else images
        facts["negatives of a row"] = compared * views - views
    return facts


def compile_timed(
    step: Step, abstract: TrainState, mesh: Mesh, report: console.Reporter
) -> Callable[..., Any]:
    """The compiled train step; says how long that took."""
    batch = batch_shapes(step.config, batch_sharding(mesh))
    started = time.perf_counter()
    compiled = compile_train_step(step, abstract, batch, mesh)
    report.say(f"compiled the train step in {time.perf_counter() - started:.1f}s")
    return compiled
