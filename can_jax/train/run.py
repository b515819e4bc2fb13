"""A training job, from its start or resume to its shutdown."""

import contextlib
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from can_jax.checkpoint.identity import check_identity, store_identity
from can_jax.checkpoint.lock import run_lock
from can_jax.checkpoint.manager import Checkpointer
from can_jax.data.pipeline.batch import batch_shapes
from can_jax.data.pipeline.loader import open_loader
from can_jax.distributed.abort import keep_stacks_in
from can_jax.distributed.mesh import batch_sharding
from can_jax.distributed.preemption import RESUME, handler
from can_jax.distributed.replica_check import ReplicaCheck
from can_jax.distributed.runtime import (
    StopSignals,
    assert_equal_across_processes,
    barrier,
    environment,
)
from can_jax.monitoring import console
from can_jax.monitoring.metrics import MetricWriter
from can_jax.monitoring.profile import TraceWindow
from can_jax.monitoring.run_log import RunLog
from can_jax.monitoring.timing import Startup
from can_jax.monitoring.watchdog import LONG, Watchdog, section
from can_jax.train.callback import CALLBACKS, CallbackList, RunContext
from can_jax.train.device_choices import device_choices
from can_jax.train.loop import Loop, Progress
from can_jax.train.pace import Pace
from can_jax.train.start import (
    first_step,
    make_directory,
    open_checkpoints,
    record_parameters,
    record_start,
    restore_or_begin,
    writing,
)
from can_jax.train.step import abstract_state, lower_train_step
from can_jax.train.training import Training
from can_jax.utils.errors import Preempted, UserError
from can_jax.utils.progress import phase


def run(
    training: Training,
    mesh: Mesh,
    workdir: epath.Path,
    log: RunLog,
    *,
    profile: bool = False,
    dump_hlo: bool = False,
) -> None:
    """Train a model; if the run directory holds a checkpoint, resume from it.

    Collective: every process must call this.

    Args:
        training: The model, data and schedule to train.
        mesh: The device mesh on which the state is sharded.
        workdir: The run directory, created if missing.
        log: The log file, which is opened once all checks of the run directory have passed.
        profile: Whether to trace a few steps with the JAX profiler.
        dump_hlo: Whether to write the HLO of the compiled train step to ``hlo.txt``.

    Raises:
        UserError: The configuration, data or run directory is invalid, or training diverged.
        Preempted: A signal such as SIGTERM ended the run before its last step or its last
            evaluation; the state was saved.
    """
    config, times, step = training.config, training.times, training.step
    startup = Startup()
    startup.mark("imports and data")
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(contextlib.closing(StopSignals()))
        make_directory(workdir)
        lock = stack.enter_context(run_lock(workdir))
        keep_stacks_in(str(workdir), f"-{jax.process_index()}" if jax.process_count() > 1 else "")
        identity = training.identity()
        check_identity(workdir, identity)
        checkpoints = stack.enter_context(
            contextlib.closing(open_checkpoints(config, workdir, lock))
        )
        longer = LONG * config.stuck_after_seconds
        with section("verifying the checkpoints", longer):
            first = first_step(checkpoints, times, workdir)
        report = stack.enter_context(contextlib.closing(console.Reporter(first, times.total, log)))
        if first == times.total and training.finished(workdir):
            report.say(
                f"the run in {workdir} has already finished its {first} steps; nothing to do"
            )
            return
        facts = {**training.facts(), "run directory": str(workdir)}
        abstract = abstract_state(step, mesh)
        choices = device_choices(config, mesh)
        replicas = ReplicaCheck(abstract, mesh) if config.check_replicas else None
        if replicas and mesh.size > 1:
            choices["state compared by check_replicas"] = f"{replicas.coverage:.1%} of its bytes"
        tables = [
            console.device_table(mesh),
            console.fact_table("Run", facts),
            console.fact_table("On these devices", choices),
            console.parameter_table(abstract.parameters),
        ]
        for table in tables:
            report.say(table)
        threads = ThreadPoolExecutor(1)
        stack.callback(threads.shutdown, wait=False)
        # The step is traced in the background. It is compiled later, when the devices are idle,
        # since the compiler may time kernels on them.
        lowering = threads.submit(
            lower_train_step,
            step,
            abstract,
            batch_shapes(config, batch_sharding(mesh)),
            mesh,
            times.seconds is not None,
        )
        with section("comparing the data", longer):
            stream = training.stream()
            hint = "config.data must point every process to the same files"
            assert_equal_across_processes("data set", json.dumps(stream, sort_keys=True), hint)
        # Every check that can reject a setting comes before the run's files are changed.
        writer = stack.enter_context(MetricWriter(workdir, config.trackers))
        with section("opening the data of the probe", longer):
            context = RunContext(
                config, mesh, step, training.source, times, workdir, writer, report
            )
            logger = training.callbacks(context)
            added = [factory(context) for _, factory in CALLBACKS.items()]
            callbacks = CallbackList([logger, *added])
        first, state, progress = restore_or_begin(
            training, checkpoints, first, abstract, stream, report, longer
        )
        # All checks of the directory have passed, so it can be written from here on.
        with writing(workdir):
            if not first and jax.process_index() == 0:
                store_identity(workdir, identity)
            described = environment(mesh) | {"run": facts, "choices": choices}
            record_start(config, workdir, first, described, report)
            record_parameters(abstract.parameters, workdir)
            writer.truncate_after(first)
            writer.hyperparameters(config.to_dict())
            writer.environment(described)
            for table in tables:
                writer.table(first, *console.contents(table))
        lock.check()
        log.open(workdir)
        drawn, most = batches_left(progress, first, times.total, config.spike.rewinds)
        loader = open_loader(
            config, training.source, mesh, drawn, most, progress.loader, progress.order_version
        )
        startup.mark("the state")
        lock.check()
        pace = None
        if times.seconds is not None and first < times.total:
            report.clock = pace = Pace(
                workdir, times.seconds, startup.began, first, progress.pace, progress.seconds
            )
        began = time.perf_counter()
        with section("running the first probe and figure", longer):
            callbacks.on_train_start(first, state)
        evaluation_seconds = time.perf_counter() - began
        startup.mark("the first probe")
        if first < times.total:
            with section("compiling the train step", longer):
                compiled = compile_timed(lowering, report)
            watchdog = Watchdog(config.stuck_after_seconds)
            startup.mark("compiling")
            if dump_hlo and jax.process_index() == 0:
                with writing(workdir):
                    (workdir / "hlo.txt").write_text(compiled.as_text() or "")
            loop = Loop(
                step=step,
                loader=loader,
                compiled=compiled,
                abstract=abstract,
                total=times.total,
                workdir=workdir,
                lock=lock,
                checkpoints=checkpoints,
                logger=logger,
                callbacks=callbacks,
                stopping=stopping,
                watchdog=stack.enter_context(contextlib.closing(watchdog)),
                replicas=replicas,
                progress=progress,
                startup=startup,
                trace=TraceWindow(workdir, first, times.total) if profile else None,
                pace=pace,
                end_seconds=evaluation_seconds,
            )
            report.start_progress()
            stopping.begin()
            first, state = loop(first, state)
            report.stop_progress()
            lock.end_soon()
            if pace:
                pace.store()
            complete = first == loop.total
            if complete and loop.stopped:  # A signal at the last step skips its evaluations.
                complete = training.finished(workdir)
            finish(first, complete, checkpoints)
        lock.check()
        with phase("finishing the run"):
            callbacks.on_train_end(state, progress.seconds)


def finish(last: int, complete: bool, checkpoints: Checkpointer) -> None:
    """Wait for the last checkpoint to be written. Collective: every process must call this.

    Args:
        last: The last completed step, whose checkpoint is being written.
        complete: Whether the run has taken its last step and completed its evaluations.
        checkpoints: The manager of the checkpoints in the run directory.

    Raises:
        UserError: The last checkpoint could not be written.
        Preempted: The run is not complete, because a signal stopped it.
    """
    with barrier("finishing the checkpoint"), phase("writing the last checkpoint"):
        saved = checkpoints.wait()
    if not saved:
        raise UserError(f"the checkpoint of step {last} could not be saved; see the warning above")
    if not complete:
        raise Preempted(f"{handler.cause}; step {last} is saved; {RESUME}")


def batches_left(progress: Progress, first: int, total: int, rewinds: int) -> tuple[int, int]:
    """Return the index of the first batch to load, and an exclusive upper bound of batch indices.

    Args:
        progress: The progress of the run, with the number of rollbacks and skipped batches.
        first: The step from which the run starts or resumes.
        total: The number of steps of the run.
        rewinds: The maximum number of rollbacks, including those in ``progress``. Each rollback
            skips at most ``total`` batches.
    """
    left = max(rewinds - progress.rewinds, 0)
    return first + progress.passed_over, total * (1 + left) + progress.passed_over


def compile_timed(lowering: Future[jax.stages.Lowered], report: console.Reporter) -> Any:
    """Wait until the train step is lowered, compile it, and print the elapsed seconds."""
    started = time.perf_counter()
    compiled = lowering.result().compile()
    report.say(f"compiled the train step in {time.perf_counter() - started:.1f}s")
    return compiled
