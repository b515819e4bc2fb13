"""Run a training job: start or resume, train, checkpoint and shut down."""

import contextlib
import json
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import jax
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from can_jax.checkpoint.identity import Identity, check_identity, store_identity
from can_jax.checkpoint.lock import RunLock, run_lock
from can_jax.checkpoint.manager import Checkpointer
from can_jax.checkpoint.resume import check_stream, to_store
from can_jax.checkpoint.run_directory import append_start, first_config, stored_config
from can_jax.config.resolve import flatten, from_json, to_json
from can_jax.data.pipeline.batch import batch_shapes
from can_jax.data.pipeline.loader import open_loader
from can_jax.distributed.abort import keep_stacks_in
from can_jax.distributed.mesh import batch_sharding
from can_jax.distributed.preemption import RESUME, handler
from can_jax.distributed.replica_check import ReplicaCheck
from can_jax.distributed.runtime import Stopping, demand_same, environment, meeting
from can_jax.monitoring import console
from can_jax.monitoring.metrics import MetricWriter
from can_jax.monitoring.profile import TraceWindow
from can_jax.monitoring.run_log import RunLog
from can_jax.monitoring.timing import Startup
from can_jax.monitoring.watchdog import LONG, Watchdog, section
from can_jax.train.loop import Loop, Progress, Watcher
from can_jax.train.run_length import Timetable
from can_jax.train.step import (
    Steps,
    TrainState,
    abstract_state,
    initialize,
    lower_train_step,
)
from can_jax.utils.errors import Preempted, UserError
from can_jax.utils.files import replace_text


@runtime_checkable
class Training(Protocol):
    """A model, its data and its schedule, which `run` trains."""

    @property
    def config(self) -> ConfigDict:
        """The resolved configuration."""
        ...

    @property
    def source(self) -> Any:
        """The training images."""
        ...

    @property
    def times(self) -> Timetable:
        """The durations of the run."""
        ...

    @property
    def step(self) -> Steps:
        """The model and the optimizer to train."""
        ...

    def identity(self) -> Identity | None:
        """Return everything that the results depend on; None if any such run may resume."""
        ...

    @property
    def allowed(self) -> Collection[str]:
        """The names in `CHANGES` whose settings may differ from those of the checkpoint."""
        ...

    def stream(self) -> dict[str, Any]:
        """Return the settings and the data that determine the stream of examples.

        See `can_jax.checkpoint.resume.check_stream`.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Return the facts to print and store before the run begins, by name."""
        ...

    def begin(self, state: TrainState, report: console.Reporter) -> TrainState:
        """Return the state of a new run before its first step, given a freshly initialized one."""
        ...

    def finished(self, workdir: epath.Path) -> bool:
        """Return whether a run that has completed its last step has nothing left to do."""
        ...

    def watcher(
        self, workdir: epath.Path, writer: MetricWriter, report: console.Reporter
    ) -> Watcher:
        """Return the callbacks of the run."""
        ...


def run(
    training: Training,
    mesh: Mesh,
    workdir: epath.Path,
    log: RunLog,
    *,
    profile: bool = False,
    dump_hlo: bool = False,
) -> None:
    """Train; resume if the run directory holds a checkpoint.

    Collective: every process must call this.

    Args:
        training: The model, data and schedule to train.
        mesh: The device mesh on which the state is sharded.
        workdir: The run directory, created if missing.
        log: The log file, opened once the directory is known to be this run's.
        profile: Whether to trace a few steps for TensorBoard.
        dump_hlo: Whether to write the compiled step to ``hlo.txt``.

    Raises:
        UserError: The configuration, data or run directory is invalid, or training diverged.
        Preempted: A signal asked the run to stop; its state is saved.
    """
    config, times, step = training.config, training.times, training.step
    startup = Startup()
    startup.mark("imports and data")
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(contextlib.closing(Stopping()))
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
            report.say(f"{workdir} has already finished its {first} steps; nothing to do")
            return
        facts = {**training.facts(), "run directory": str(workdir)}
        report.say(console.device_table(mesh))
        report.say(console.fact_table("Run", facts))
        abstract = abstract_state(step, mesh)
        report.say(console.parameter_table(abstract.parameters))
        threads = ThreadPoolExecutor(1)
        stack.callback(threads.shutdown, wait=False)
        # The step is traced in the background. It is compiled later, when the devices are idle,
        # since the compiler may time kernels on them.
        lowering = threads.submit(
            lower_train_step, step, abstract, batch_shapes(config, batch_sharding(mesh)), mesh
        )
        with section("comparing the data", longer):
            stream = training.stream()
            hint = "let config.data show all the same files"
            demand_same("data set", json.dumps(stream, sort_keys=True), hint)
        # Everything that can reject a setting comes before the first change to the directory.
        writer = stack.enter_context(contextlib.closing(MetricWriter(workdir)))
        with section("opening the data of the probe", longer):
            watcher = training.watcher(workdir, writer, report)
        first, state, progress = restore_or_begin(
            training, checkpoints, first, abstract, stream, report, longer
        )
        # All checks of the directory have passed, so it can be written from here on.
        with writing(workdir):
            if not first and jax.process_index() == 0:
                store_identity(workdir, identity)
            note_start(config, workdir, first, environment(mesh) | {"run": facts}, report)
            note_parameters(abstract.parameters, workdir)
            writer.go_back(first)
        lock.check()
        log.open(workdir)
        drawn, most = batches_left(progress, first, times.total, config.spike.rewinds)
        loader = open_loader(
            config, training.source, mesh, drawn, most, progress.loader, progress.order_version
        )
        startup.mark("the state")
        lock.check()
        with section("looking at the run before its first step", longer):
            watcher.look_first(first, state)
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
                watcher=watcher,
                stopping=stopping,
                watchdog=stack.enter_context(contextlib.closing(watchdog)),
                replicas=ReplicaCheck(abstract, mesh) if config.check_replicas else None,
                progress=progress,
                startup=startup,
                trace=TraceWindow(workdir, first, times.total) if profile else None,
            )
            report.start_bar()
            stopping.begin()
            first, state = loop(first, state)
            lock.end_soon()
            finish(first, times.total, checkpoints)
        lock.check()
        watcher.conclude(state, progress.seconds)


def restore_or_begin(
    training: Training,
    checkpoints: Checkpointer,
    first: int,
    abstract: TrainState,
    stream: dict[str, Any],
    report: console.Reporter,
    timeout: float,
) -> tuple[int, TrainState, Progress]:
    """Restore a checkpoint, or begin a new run. Collective: every process must call this.

    Args:
        training: The model, data and schedule to train.
        checkpoints: The checkpoints of the run directory.
        first: The step to restore; 0 begins a new run.
        abstract: The shapes and shardings of the state.
        stream: The settings and the data of this start, which are compared with the checkpoint's.
        report: The console.
        timeout: Seconds that the restoration may take.

    Returns:
        The step of the state, which is an earlier one than ``first`` if that checkpoint is of
        another model; the state; and the data position of the run.

    Raises:
        UserError: No checkpoint fits the model, or it is of another stream of examples.
    """
    if not first:
        state = training.begin(initialize(training.step, abstract), report)
        return 0, state, Progress(stream=stream)
    restoring = "restoring the checkpoint"
    with section(restoring, timeout), meeting(restoring):
        first, state, restored = checkpoints.restore(first, abstract)
    progress = Progress.from_json(restored)
    check_stream(progress.stream, stream, first, training.allowed)
    checkpoints.set_aside_refused()
    report.say(f"resumed from the checkpoint of step {first}")
    progress.stream = stream
    return first, state, progress


def finish(last: int, total: int, checkpoints: Checkpointer) -> None:
    """Block until the last checkpoint is written. Collective: every process must call this.

    Raises:
        UserError: The checkpoint could not be written.
        Preempted: The run was stopped before its last step.
    """
    with meeting("finishing the checkpoint"):
        saved = checkpoints.wait()
    if not saved:
        raise UserError(f"step {last} was reached, but could not be saved; see the line above")
    if last < total:
        raise Preempted(f"{handler.cause}; step {last} is saved; {RESUME}")


def open_checkpoints(config: ConfigDict, workdir: epath.Path, lock: RunLock) -> Checkpointer:
    """Open the checkpoints of a run directory. Collective: every process must call this.

    Args:
        config: The resolved configuration.
        workdir: The run directory.
        lock: The lock on it, checked before anything is written.
    """
    folder, settings = workdir / "checkpoints", config.checkpoint
    return Checkpointer(folder, settings.keep_last, settings.keep_every_steps, check=lock.check)


@contextlib.contextmanager
def writing(workdir: epath.Path) -> Iterator[None]:
    """Turn an `OSError` while the run directory is prepared into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from error


def make_directory(workdir: epath.Path) -> None:
    """Create the run directory and check that files can be written to it.

    Raises:
        UserError: They cannot.
    """
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        # Every process has a file of its own, since all of them try at once.
        trial = workdir / f".writable_{jax.process_index()}"
        trial.write_text("")
        trial.unlink()


def first_step(checkpoints: Checkpointer, times: Timetable, workdir: epath.Path) -> int:
    """Return the step of the latest valid checkpoint, 0 without any.

    Collective: every process must call this.

    Raises:
        UserError: The checkpoint is past the end of this run, or no checkpoint is valid.
    """
    done = checkpoints.newest_whole() or 0
    if done > times.total:
        raise UserError(
            f"--workdir={workdir} holds a checkpoint of step {done}, past the end of this run at "
            f"{times.total}: make the run longer, or give another --workdir"
        )
    return done


def batches_left(progress: Progress, first: int, total: int, rewinds: int) -> tuple[int, int]:
    """Return the batch at which a run resumes drawing, and an upper bound that it cannot reach.

    Args:
        progress: The progress of the run.
        first: The step from which it starts or resumes.
        total: The last step.
        rewinds: The maximum number of rollbacks, those in ``progress`` included. Each skips fewer
            batches than the run has steps.
    """
    left = max(rewinds - progress.rewinds, 0)
    return first + progress.passed_over, total * (1 + left) + progress.passed_over


def note_start(
    config: ConfigDict,
    workdir: epath.Path,
    first: int,
    facts: dict[str, Any],
    report: console.Reporter,
) -> None:
    """Store the configuration and the environment of this start, and print changed settings.

    Settings are compared with those of the run's first start. Only the main process acts.

    Args:
        config: The resolved configuration.
        workdir: The run directory.
        first: The step from which the run starts or resumes.
        facts: The environment and the facts of the run, as JSON values.
        report: The reporter that prints the changes.
    """
    if jax.process_index():
        return
    path = workdir / "config.json"
    stored = stored_config(workdir)
    if stored is not None:
        # `from_json` fills in the keys that are newer than the run.
        began = from_json(json.dumps(first_config(workdir) or json.loads(stored)))
        old, new = (flatten(json.loads(to_json(of))) for of in (began, config))
        for key in sorted(new.keys() | old.keys()):
            if old.get(key) != new.get(key):
                report.say(f"changed since this run began: {key} {old.get(key)} -> {new.get(key)}")
    text = to_store(config, stored)
    append_start(workdir, first, text, facts)
    replace_text(path, text + "\n")
    replace_text(workdir / "environment.json", json.dumps(facts, indent=2) + "\n")


def note_parameters(parameters: Any, workdir: epath.Path) -> None:
    """Store the shape of every parameter and the mesh axes over which it is split."""
    if jax.process_index() == 0:
        overview = parameter_overview.get_parameter_overview(parameters, include_stats="sharding")
        replace_text(workdir / "parameters.txt", overview + "\n")


def compile_timed(lowering: Future[jax.stages.Lowered], report: console.Reporter) -> Any:
    """Compile the train step and print how long that took."""
    started = time.perf_counter()
    compiled = lowering.result().compile()
    report.say(f"compiled the train step in {time.perf_counter() - started:.1f}s")
    return compiled
