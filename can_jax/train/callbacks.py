"""The standard callbacks of a run: metric logging, the kNN probe and the reconstruction figures."""

import functools
import shlex
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from can_jax.checkpoint.run_directory import CHECKPOINTS
from can_jax.data.evaluation.examples import EvaluationSet
from can_jax.data.pipeline.training_loader import Loader
from can_jax.data.sources.labels import has_labels
from can_jax.distributed.hardware import peak_flops
from can_jax.distributed.mesh import replicated
from can_jax.distributed.runtime import gather
from can_jax.monitoring import console
from can_jax.monitoring.figures import FIGURE, figure_path
from can_jax.monitoring.jsonl import read_metrics
from can_jax.monitoring.scalars import to_scalars
from can_jax.monitoring.timing import InputWatch, StepClock, Window
from can_jax.objectives import reads
from can_jax.objectives.denoising import linear_bound
from can_jax.train.callback import Callback, PeriodicAction, RunContext
from can_jax.train.figures import draw, make_panel, pixels_of
from can_jax.train.flops import train_flops_per_image
from can_jax.train.health_probe import RANK, HealthProbe, described
from can_jax.train.knn_probe import KnnProbe
from can_jax.train.patch_statistics import Moments
from can_jax.train.run_length import RunLength
from can_jax.train.step import Step, TrainState
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.files import replace_bytes

EARLY_SECONDS = 15.0  # from the first step to an early status line; see `Log.early`
PROBE, PIXELS = "probe/knn", "probe/knn_pixels"  # metric names
LINEAR_BOUND = "denoising/linear_bound"


def pending_evaluations(step: int, times: RunLength, workdir: epath.Path) -> list[str]:
    """Return the evaluations, ``probe`` or ``picture``, that are due at a step but have no output.

    A run saves a checkpoint of a step before it evaluates the step. If the run is killed during the
    evaluation, the checkpoint exists but the output is missing. Collective: every process must call
    this.

    Args:
        step: The step from which the run starts or resumes.
        times: The intervals of the evaluations and the length of the run, in steps.
        workdir: The run directory, in which metrics and figures are looked up.
    """
    probed = any(
        line["step"] == step and (PROBE in line or RANK in line) for line in read_metrics(workdir)
    )
    evaluations = {
        "probe": (times.probe_every, probed),
        "picture": (times.figures_every, figure_path(workdir, step).exists()),
    }
    pending = [
        bool(every and step and (step % every == 0 or step == times.total) and not has_output)
        for every, has_output in evaluations.values()
    ]
    agreed = gather("evaluations done", np.array(pending))[0]  # those of process 0
    return [name for name, is_pending in zip(evaluations, agreed, strict=True) if is_pending]


class Log(Callback):
    """A callback that writes metrics and prints status lines, for pretraining and fine-tuning.

    Args:
        run: The configuration, data and loggers of the run.
        flops: The FLOPs of a train step per image, from which the MFU is computed.
    """

    def __init__(self, run: RunContext, flops: int):
        self.report, self._writer = run.report, run.writer
        self._config, self._times, self._flops = run.config, run.times, flops
        self._devices = run.mesh.size
        self._checkpoints = run.workdir / CHECKPOINTS
        self._skipped_steps = 0.0
        self._input = InputWatch()
        self._logged = False
        self._first: tuple[int, float] | None = None

    @functools.cached_property
    def _peak(self) -> float:
        """The peak FLOP/s of all devices together. If the peak of their kind is unknown, it is
        measured while the devices are idle."""
        return peak_flops(self._config.model.dtype) * self._devices

    def on_rollback(self, step: int) -> None:
        """Discard the metrics of steps after ``step``, and move the progress bar back to
        ``step``."""
        self._writer.truncate_after(step)
        self.report.advance(step)

    def early(self, step: int, metrics: dict[str, Any]) -> None:
        """Print a status line if none was printed in the `EARLY_SECONDS` after the first step.

        The training loop calls `early` after every step whose metrics it does not log. `early`
        prints the metrics, but does not write them.
        """
        if self._logged or jax.process_index():
            return
        now = time.perf_counter()
        if self._first is None:
            jax.block_until_ready(metrics)
            self._first = step, time.perf_counter()
        elif now - self._first[1] > EARLY_SECONDS:
            self._logged = True
            values = to_scalars(metrics)
            window = Window(step - self._first[0], time.perf_counter() - self._first[1], 0.0)
            self.report.status(step, values | self._progress(step, window), window)

    def _progress(self, step: int, window: Window) -> dict[str, Any]:
        """Return the number of images seen, the epoch and the throughput at a step."""
        images = step * self._config.batch_size
        return {
            "examples": images,
            "epoch": images / self._times.examples,
            "images_per_second": self._config.batch_size / window.step_seconds,
        }

    def saved(self, step: int) -> None:
        """Pass the path of a step's checkpoint to the experiment trackers."""
        self._writer.checkpoint(step, self._checkpoints / str(step))

    def log(self, step: int, metrics: dict[str, Any], clock: StepClock, loader: Loader) -> None:
        """Write the metrics and timings of a step, and print a status line. Collective: every
        process must call this."""
        window = clock.window()
        with clock.paused():
            peak = self._peak
        progress = self._progress(step, window)
        images_per_second = progress["images_per_second"]
        values = (
            to_scalars(metrics)
            | progress
            | {
                "mfu": images_per_second * self._flops / peak,
                "data_wait": window.data_wait,
                "skipped_images": loader.skipped_by_all(),
            }
        )
        self._writer.scalars(step, values)
        self.report.status(step, values, window)
        self._logged = True
        if line := self._input(window.data_wait, images_per_second):
            self.report.say(line)
        if values["skipped_steps"] > self._skipped_steps:
            self._skipped_steps = values["skipped_steps"]
            self.report.say(
                f"warning: {self._skipped_steps:.0f} updates so far were skipped because the "
                "loss, a gradient or an updated value was not finite; a lower "
                "optimizer.learning_rate may help"
            )


class PretrainCallbacks(Log):
    """The callbacks of pretraining: metrics, the kNN probe and the reconstruction figures.

    Args:
        run: The configuration, data and loggers of the run.
        step: The train step of ``run``.
        moments: A collective function that returns the mean and covariance of training patches.
    """

    def __init__(self, run: RunContext, step: Step, moments: Callable[[], Moments]):
        super().__init__(run, train_flops_per_image(step.config))
        self._step, self._source, self._moments = step, run.source, moments
        self._mesh, self._workdir = run.mesh, run.workdir
        self._probe: KnnProbe | None = None
        self._health: HealthProbe | None = None
        if run.times.probe_every:
            arguments = step.config, step, run.source, run.mesh
            try:
                self._probe = KnnProbe(*arguments)
            except UserError as error:
                if has_labels(run.source):
                    raise  # The data has labels, so something else is wrong.
                self._health = HealthProbe(*arguments)
                logging.info("label-free feature metrics replace the kNN probe: %s", error)
        if run.times.figures_every:
            self._panel = jax.jit(
                functools.partial(make_panel, step), out_shardings=replicated(run.mesh)
            )

    @functools.cached_property
    def _pictured(self) -> np.ndarray:
        """The images that the figures show, as a uint8 array."""
        config = self._step.config
        examples = EvaluationSet(config, self._source, config.figures.images, labeled=False)
        return examples.images()

    def periodic_actions(self) -> list[PeriodicAction]:
        """Return the periodic actions that draw figures and run the probe, if they are enabled."""
        periodic_actions = []
        if self._times.probe_every:
            probe = PeriodicAction(self._times.probe_every, self.probe, saves_first=True)
            periodic_actions.append(probe)
        if self._times.figures_every:
            figure = PeriodicAction(self._times.figures_every, self.picture, saves_first=True)
            periodic_actions.append(figure)
        return periodic_actions

    def on_train_start(self, step: int, state: TrainState) -> None:
        """Run the evaluations that are due before the first step of this start.

        A new run with a probe measures the kNN accuracy of raw pixels and of the untrained encoder.
        Without labels, the run measures the geometry of the untrained encoder's features instead.
        If ``noise.linear_bound`` is set, a new run also logs the fraction of the noise that the
        optimal linear denoiser removes. A resumed run evaluates its checkpoint if an evaluation was
        due at the checkpoint's step and has no output.
        """
        if not step:
            self._bound()
        if not step and self._probe:
            pixels, measured = self._probe.on_pixels(), self._probe(state)
            self._writer.scalars(0, measured | {PIXELS: pixels})
            untrained = measured[PROBE]
            self.report.say(
                f"kNN accuracy: raw pixels {pixels:.1f}%, untrained encoder {untrained:.1f}%"
            )
        elif not step and self._health:
            self.probe(0, state)
        for name in pending_evaluations(step, self._times, self._workdir):
            getattr(self, name)(step, state)

    def _bound(self) -> None:
        """Log the fraction of the noise that the optimal linear denoiser of a patch removes, if
        ``noise.linear_bound`` is set."""
        config = self._step.config
        if config.noise.linear_bound and "noise" in reads(config.objective.to_dict()):
            variances = np.linalg.eigvalsh(self._moments().covariance)
            share = linear_bound(variances, config.noise.sigma_max)
            self._writer.scalars(0, {LINEAR_BOUND: share})
            self.report.say(
                f"the best linear denoiser of a patch explains {100 * share:.0f}% of the noise"
            )

    def probe(self, step: int, state: TrainState) -> None:
        """Evaluate the features, write the metrics, and print the kNN accuracy in percent.

        Without labels, label-free metrics of the features are printed instead of an accuracy.
        """
        if self._health is not None:
            health = self._health(state)
            self._writer.scalars(step, health)
            self.report.say(f"step {step}: label-free feature metrics: {described(health)}")
            return
        assert self._probe is not None
        measured = self._probe(state)
        self._writer.scalars(step, measured)
        self.report.say(f"step {step}: kNN {measured[PROBE]:.1f}%")

    def picture(self, step: int, state: TrainState) -> None:
        """Draw the figure of a step, write it as a PNG file, and pass it to the experiment
        trackers. Errors are logged as warnings."""
        with jax.set_mesh(self._mesh):
            panel = jax.device_get(self._panel(state, self._pictured))
        if jax.process_index() == 0:
            try:
                png = draw(panel, f"step {step}")
                path = figure_path(self._workdir, step)
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_bytes(path, png)
                self._writer.image(step, FIGURE, pixels_of(png))
            # Matplotlib reads the user's settings, so it can raise errors of any kind.
            except Exception as error:
                logging.warning("the figure of step %d was not written: %s", step, one_line(error))

    def on_train_end(self, state: TrainState, seconds: float) -> None:
        """Print the run's duration, kNN accuracies and files, and commands for the next steps."""
        lines = read_metrics(self._workdir)
        probes = [line for line in lines if PROBE in line]
        accuracies: dict[str, float | None] = {}
        for line in probes:
            if line["step"]:
                accuracies["trained encoder"] = line[PROBE]
            else:
                accuracies |= {"raw pixels": line[PIXELS], "untrained encoder": line[PROBE]}
        facts: dict[str, Any] = {"time": console.duration(seconds)}
        facts |= {f"kNN, {name}": f"{value:.1f}%" for name, value in accuracies.items()}
        if self._health is not None:
            measured = [line for line in lines if RANK in line]
            for name, line in zip(
                ("untrained", "trained"), measured[:1] + measured[-1:], strict=False
            ):
                facts[f"features, {name}"] = described(line)
        facts["metrics"] = str(self._workdir / "metrics.jsonl")
        if self._times.figures_every:
            facts["figure to open"] = str(figure_path(self._workdir, int(state.step)))
        table = console.fact_table("Finished", facts)
        self.report.say(table)
        self._writer.table(int(state.step), *console.contents(table))
        for command in next_steps(self._workdir, labeled=self._health is None):
            self.report.say(command)


def next_steps(workdir: epath.Path, labeled: bool = True) -> list[str]:
    """Return lines that suggest commands to run after a finished pretraining run.

    Args:
        workdir: The run directory.
        labeled: Whether the probe data has labels; if False, a command for label-free metrics is
            added.
    """
    run = shlex.quote(str(workdir))
    health = f"can-jax evaluate --config=health --checkpoint={run} --workdir={run}_health"
    return [
        *([] if labeled else [f"see the features:     {health}"]),
        f"see the curves:       can-jax report {run} (HTML), or tensorboard --logdir {run}",
        f"evaluate on labels:   can-jax evaluate --config=knn --checkpoint={run} "
        f"--workdir={run}_knn --data=LABELED_IMAGES",
        f"export:               can-jax export --checkpoint={run} --format=huggingface "
        f"--output={run}_huggingface",
        f"use in Python:        can_jax.load({str(workdir)!r})",
    ]
