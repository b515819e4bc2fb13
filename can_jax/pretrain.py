"""The pretraining run, top to bottom."""

import contextlib
import functools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from can_jax.checkpoint import Checkpointer
from can_jax.config import flatten, resolve, steps_of, to_json
from can_jax.data.batch import Batch, batch_shapes
from can_jax.data.loader import TrainingLoader, evaluation_images
from can_jax.data.source import Source, open_source
from can_jax.errors import Preempted, UserError
from can_jax.evaluate.probe import KnnProbe
from can_jax.observe import console
from can_jax.observe.clock import StepClock
from can_jax.observe.figures import make_panel, save_panel
from can_jax.observe.flops import peak_flops, train_flops_per_image
from can_jax.observe.metrics import MetricWriter, to_scalars
from can_jax.optimizer import learning_rate_schedule, peak_learning_rate
from can_jax.parallel.mesh import batch_sharding, batch_shards, make_mesh
from can_jax.parallel.runtime import environment
from can_jax.step import Step, TrainState, compile_train_step, heads, initialize, make_step


class Plan(NamedTuple):
    """A run in numbers; durations are in steps, None is never."""

    examples: int  # images of an epoch
    total: int
    warmup: int
    peak_learning_rate: float
    flops_per_image: int
    probe_every: int | None
    figures_every: int | None


class Hook(NamedTuple):
    """Something to do with the state now and then: every so many steps, and after the last."""

    every: int
    act: Callable[[int, TrainState], None]


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Train as the configuration says, going on where the run directory ends.

    Args:
        config: a recipe's configuration, checked here.
        workdir: the run directory, made if missing.

    Raises:
        UserError: something a person can mend; found before anything is compiled.
        Preempted: SIGTERM came; the state is saved.
    """
    config = resolve(config)
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    source = open_source(config.data, config.data.split)
    check_labels(config, source)
    plan = make_plan(config, source.examples)
    with contextlib.closing(open_checkpoints(config, workdir)) as checkpoints:
        first = first_step(checkpoints, plan, workdir)
        report = console.Reporter(first, plan.total)
        if first == plan.total:
            report.say(f"{workdir} has already finished its {first} steps; nothing to do")
            return
        note_run(config, workdir, mesh, plan, report)

        step = make_step(
            config, learning_rate_schedule(plan.peak_learning_rate, plan.warmup, plan.total)
        )
        state, abstract = initialize(step, mesh)
        report.say(console.parameter_table(state.parameters))
        run = {"seconds": 0.0}
        if first:
            state, run = checkpoints.restore(first, abstract)
            report.say(f"resumed from the checkpoint of step {first}")
        with contextlib.closing(MetricWriter(workdir, after=first)) as writer:
            observers = Observers(step, source, mesh, plan, workdir, writer, report, run)
            loader = TrainingLoader(config, source, mesh, first, plan.total)
            train_step = compile_timed(step, abstract, mesh, report)
            if not first:
                observers.before(state)
            started = time.perf_counter() - run["seconds"]

            def save(number: int, state: TrainState) -> None:
                run["seconds"] = time.perf_counter() - started
                checkpoints.save(number, state, run)

            hooks = [*observers.hooks(), Hook(config.checkpoint.every_steps, save)]
            with contextlib.closing(report), stop_on_sigterm() as stopping:
                loop(config, plan, first, state, loader, train_step, observers, hooks, stopping)
        checkpoints.wait()
        observers.conclude(time.perf_counter() - started)


def loop(
    config: ConfigDict,
    plan: Plan,
    first: int,
    state: TrainState,
    loader: TrainingLoader,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]],
    observers: "Observers",
    hooks: list[Hook],
    stopping: threading.Event,
) -> None:
    """Step after step, and what is due after each."""
    clock = StepClock()
    for number in range(first + 1, plan.total + 1):
        with clock.waiting_for_data():
            batch = next(loader)
        state, metrics = train_step(state, batch)
        clock.stepped(metrics["loss/total"])
        observers.report.advance(number)

        last, stop = number == plan.total, stopping.is_set()
        if number % config.log_every_steps == 0 or last:
            observers.log(number, metrics, clock, loader)
        for hook in hooks:
            # The last hook saves, and does so when the run is told to stop.
            if number % hook.every == 0 or last or (stop and hook is hooks[-1]):
                with clock.paused():
                    hook.act(number, state)
        if stop and not last:
            raise Preempted(f"stopped by SIGTERM; step {number} is saved, start again to go on")


class Observers:
    """What watches a run: metrics, probe and figures."""

    def __init__(
        self,
        step: Step,
        source: Source,
        mesh: Mesh,
        plan: Plan,
        workdir: Path,
        writer: MetricWriter,
        report: console.Reporter,
        run: dict[str, Any],
    ):
        self.report = report
        self._step, self._mesh, self._plan = step, mesh, plan
        self._workdir, self._writer, self._run = workdir, writer, run
        peak, self._peak_source = peak_flops(step.config.model.dtype)
        self._peak = peak * mesh.size
        self._skipped_steps = 0.0
        self._probe = None
        if plan.probe_every:
            self._probe = KnnProbe(step.config, step, source, mesh)
        if plan.figures_every:
            count = step.config.figures.images
            self._pictured = evaluation_images(step.config, source, count, labelled=False).images
            self._panel = jax.jit(functools.partial(make_panel, step))

    def hooks(self) -> list[Hook]:
        """Those that the configuration asks for."""
        hooks = []
        if self._plan.probe_every:
            hooks.append(Hook(self._plan.probe_every, self.probe))
        if self._plan.figures_every:
            hooks.append(Hook(self._plan.figures_every, self.picture))
        return hooks

    def before(self, state: TrainState) -> None:
        """The state of things before the first step."""
        if self._probe:
            pixels, untrained = self._probe.on_pixels(), self._probe(state)
            self._run |= {"knn/pixels": pixels, "knn/untrained": untrained}
            self._writer.scalars(0, {"probe/knn": untrained, "probe/knn_pixels": pixels})
            self.report.say(f"kNN: raw pixels {pixels:.1f}%, untrained encoder {untrained:.1f}%")

    def log(
        self, number: int, metrics: dict[str, Any], clock: StepClock, loader: TrainingLoader
    ) -> None:
        """Close the clock's window, and write down what is known."""
        window, config = clock.window(), self._step.config
        images_per_second = config.batch_size / window.step_seconds
        values = to_scalars(metrics) | {
            "examples": number * config.batch_size,
            "epoch": number * config.batch_size / self._plan.examples,
            "images_per_second": images_per_second,
            "mfu": images_per_second * self._plan.flops_per_image / self._peak,
            "data_wait": window.data_wait,
            "skipped_images": loader.skipped,
        }
        self._writer.scalars(number, values)
        self.report.status(number, values, window)
        if values["skipped_steps"] > self._skipped_steps:
            self._skipped_steps = values["skipped_steps"]
            self.report.say(
                f"warning: {self._skipped_steps:.0f} updates so far were skipped, their loss or "
                "gradient was not finite; a lower optimizer.learning_rate may help"
            )

    def probe(self, number: int, state: TrainState) -> None:
        """kNN accuracy on the probe's splits."""
        assert self._probe is not None
        accuracy = self._probe(state)
        self._run["knn/trained"] = accuracy
        self._writer.scalars(number, {"probe/knn": accuracy})
        self.report.say(f"step {number}: kNN {accuracy:.1f}%")

    def picture(self, number: int, state: TrainState) -> None:
        """The panel, as a file and for TensorBoard."""
        path = self._workdir / "figures" / f"step_{number:08d}.png"
        with jax.set_mesh(self._mesh):
            panel = jax.device_get(self._panel(state, self._pictured))
        self._writer.image(number, "panel", save_panel(panel, path, f"step {number}"))
        self._run["figure"] = str(path)

    def conclude(self, seconds: float) -> None:
        """What to remember of the run, and where to look."""
        facts: dict[str, Any] = {"time": console.duration(seconds)}
        names = {
            "knn/pixels": "kNN, raw pixels",
            "knn/untrained": "kNN, untrained encoder",
            "knn/trained": "kNN, trained encoder",
        }
        facts |= {name: f"{self._run[key]:.1f}%" for key, name in names.items() if key in self._run}
        facts["metrics"] = str(self._workdir / "metrics.jsonl")
        if "figure" in self._run:
            facts["figure to open"] = self._run["figure"]
        self.report.say(console.fact_table("Finished", facts))


def make_plan(config: ConfigDict, examples: int) -> Plan:
    """The durations of a checked configuration, given the size of the data set."""

    def steps(block: ConfigDict, name: str) -> int | None:
        return steps_of(block, name, config.batch_size, examples)

    return Plan(
        examples=examples,
        total=steps(config, "total") or 0,
        warmup=steps(config.optimizer, "warmup") or 0,
        peak_learning_rate=peak_learning_rate(config),
        flops_per_image=train_flops_per_image(config, heads(config)),
        probe_every=steps(config.probe, "every"),
        figures_every=config.figures.every_steps if "prediction" in heads(config) else None,
    )


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """The batch divides over the devices."""
    shards = batch_shards(mesh)
    if config.batch_size % shards:
        below = config.batch_size // shards * shards
        nearest = " and ".join(str(size) for size in (below, below + shards) if size)
        raise UserError(
            f"config.batch_size={config.batch_size} does not divide over the {shards} devices of "
            f"mesh.data x mesh.fsdp; the nearest that would: {nearest}"
        )


def check_labels(config: ConfigDict, source: Source) -> None:
    """The supervised contrastive loss has labels to learn from."""
    contrastive = config.objective.contrastive
    wanted = contrastive.weight and contrastive.supervised
    if wanted and source.labels is not None and not (source.labels >= 0).any():
        raise UserError(
            "config.objective.contrastive.supervised=True needs labels, and the data has none"
        )


def open_checkpoints(config: ConfigDict, workdir: Path) -> Checkpointer:
    """The run directory's checkpoints."""
    settings = config.checkpoint
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return Checkpointer(workdir / "checkpoints", settings.keep_last, settings.keep_every_steps)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from error


def first_step(checkpoints: Checkpointer, plan: Plan, workdir: Path) -> int:
    """How many steps the run directory holds already."""
    done = checkpoints.latest_step or 0
    if done > plan.total:
        raise UserError(
            f"--workdir={workdir} holds a checkpoint of step {done}, past the end of this run at "
            f"{plan.total}: make the run longer, or give another --workdir"
        )
    return done


def note_run(
    config: ConfigDict, workdir: Path, mesh: Mesh, plan: Plan, report: console.Reporter
) -> None:
    """Print and store what is about to run."""
    facts = {
        "effective batch (images)": config.batch_size,
        "views an image": config.augment.views,
        "peak learning rate": f"{plan.peak_learning_rate:.4g}",
        "warm-up steps": plan.warmup,
        "steps": plan.total,
        "epochs": f"{plan.total * config.batch_size / plan.examples:.4g}",
        "images of an epoch": plan.examples,
        "analytic FLOPs of a step, an image": f"{plan.flops_per_image:.3e}",
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
    if jax.process_index() == 0:
        before.write_text(to_json(config) + "\n")
        stored = environment(mesh) | {"run": facts}
        (workdir / "environment.json").write_text(json.dumps(stored, indent=2) + "\n")


def compile_timed(
    step: Step, abstract: TrainState, mesh: Mesh, report: console.Reporter
) -> Callable[..., Any]:
    """The compiled train step; says how long that took."""
    config, data = step.config, step.config.data
    batch = batch_shapes(
        config.batch_size,
        config.augment.views,
        data.image_size,
        data.channels,
        batch_sharding(mesh),
    )
    started = time.perf_counter()
    compiled = compile_train_step(step, abstract, batch, mesh)
    report.say(f"compiled the train step in {time.perf_counter() - started:.1f}s")
    report.start_bar()
    return compiled


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, for the loop to look at between steps."""
    stopping = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, before)
