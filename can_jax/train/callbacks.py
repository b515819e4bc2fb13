"""What watches a run: metrics, probe and figures."""

import functools
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from can_jax.data.evaluation.examples import EvaluationSet
from can_jax.data.pipeline.training_loader import Loader
from can_jax.distributed.hardware import peak_flops
from can_jax.distributed.mesh import replicated
from can_jax.distributed.runtime import gather
from can_jax.models.flops import train_flops_per_image
from can_jax.monitoring import console
from can_jax.monitoring.metrics import MetricWriter, read_metrics, to_scalars
from can_jax.monitoring.timing import InputWatch, StepClock
from can_jax.train.figures import draw, make_panel, pixels_of
from can_jax.train.knn_probe import KnnProbe
from can_jax.train.loop import Hook
from can_jax.train.losses import heads
from can_jax.train.run_length import Timetable
from can_jax.train.step import Step, TrainState
from can_jax.utils.errors import one_line
from can_jax.utils.files import replace_bytes

PROBE, PIXELS = "probe/knn", "probe/knn_pixels"  # names of metrics


def unseen(number: int, times: Timetable, workdir: epath.Path) -> list[str]:
    """What was due after a step and has left no trace: `probe`, `picture`. A run that is killed
    while it looks at itself has saved that step before. All processes have to ask."""
    probed = any(line["step"] == number and PROBE in line for line in read_metrics(workdir))
    traces = {
        "probe": (times.probe_every, probed),
        "picture": (times.figures_every, figure_path(workdir, number).exists()),
    }
    missing = [
        bool(every and number and (number % every == 0 or number == times.total) and not seen)
        for every, seen in traces.values()
    ]
    agreed = gather("what was looked at", np.array(missing))[0]
    return [name for name, absent in zip(traces, agreed, strict=True) if absent]


def figure_path(workdir: epath.Path, number: int) -> epath.Path:
    """Where the panel of a step lies."""
    return workdir / "figures" / f"step_{number:08d}.png"


class Log:
    """What is written down of any run.

    Args:
        config: resolved.
        mesh: of the devices.
        times: of the run.
        flops: of a step, for one image.
        writer, report: where it goes.
    """

    def __init__(
        self,
        config: ConfigDict,
        mesh: Mesh,
        times: Timetable,
        flops: int,
        writer: MetricWriter,
        report: console.Reporter,
    ):
        self.report = report
        self._config, self._times, self._writer, self._flops = config, times, writer, flops
        self._devices = mesh.size
        self._skipped_steps = 0.0
        self._input = InputWatch()

    @functools.cached_property
    def _peak(self) -> float:
        """FLOP/s of all devices, which may have to be measured while they are idle."""
        return peak_flops(self._config.model.dtype)[0] * self._devices

    def go_back(self, number: int) -> None:
        """The steps after this one come again."""
        self._writer.go_back(number)
        self.report.advance(number)

    def log(self, number: int, metrics: dict[str, Any], clock: StepClock, loader: Loader) -> None:
        """Close the clock's window, and write down what is known."""
        window, config = clock.window(), self._config
        with clock.paused():
            peak = self._peak
        images_per_second = config.batch_size / window.step_seconds
        values = to_scalars(metrics) | {
            "examples": number * config.batch_size,
            "epoch": number * config.batch_size / self._times.examples,
            "images_per_second": images_per_second,
            "mfu": images_per_second * self._flops / peak,
            "data_wait": window.data_wait,
            "skipped_images": loader.skipped,
        }
        self._writer.scalars(number, values)
        self.report.status(number, values, window)
        if line := self._input(window.data_wait, images_per_second):
            self.report.say(line)
        if values["skipped_steps"] > self._skipped_steps:
            self._skipped_steps = values["skipped_steps"]
            self.report.say(
                f"warning: {self._skipped_steps:.0f} updates so far were skipped, their loss or "
                "gradient was not finite; a lower optimizer.learning_rate may help"
            )


class Observers(Log):
    """What watches pretraining: metrics, probe and figures."""

    def __init__(
        self,
        step: Step,
        source: Any,
        mesh: Mesh,
        times: Timetable,
        workdir: epath.Path,
        writer: MetricWriter,
        report: console.Reporter,
    ):
        flops = train_flops_per_image(step.config, heads(step.config))
        super().__init__(step.config, mesh, times, flops, writer, report)
        self._step, self._source, self._mesh, self._workdir = step, source, mesh, workdir
        self._probe = None
        if times.probe_every:
            self._probe = KnnProbe(step.config, step, source, mesh)
        if times.figures_every:
            self._panel = jax.jit(
                functools.partial(make_panel, step), out_shardings=replicated(mesh)
            )

    @functools.cached_property
    def _pictured(self) -> np.ndarray:
        """The images of the figures."""
        config = self._step.config
        examples = EvaluationSet(config, self._source, config.figures.images, labelled=False)
        return examples.images()

    def hooks(self) -> list[Hook]:
        """Those that the configuration asks for."""
        hooks = []
        if self._times.probe_every:
            hooks.append(Hook(self._times.probe_every, self.probe))
        if self._times.figures_every:
            hooks.append(Hook(self._times.figures_every, self.picture))
        return hooks

    def look_first(self, number: int, state: TrainState) -> None:
        """Before any step, or before going on from one: at what a killed run did not come to."""
        if not number and self._probe:
            pixels, untrained = self._probe.on_pixels(), self._probe(state)
            self._writer.scalars(0, {PROBE: untrained, PIXELS: pixels})
            self.report.say(f"kNN: raw pixels {pixels:.1f}%, untrained encoder {untrained:.1f}%")
        for name in unseen(number, self._times, self._workdir):
            getattr(self, name)(number, state)

    def probe(self, number: int, state: TrainState) -> None:
        """kNN accuracy on the probe's splits."""
        assert self._probe is not None
        accuracy = self._probe(state)
        self._writer.scalars(number, {PROBE: accuracy})
        self.report.say(f"step {number}: kNN {accuracy:.1f}%")

    def picture(self, number: int, state: TrainState) -> None:
        """The panel, as a file and for TensorBoard."""
        with jax.set_mesh(self._mesh):
            panel = jax.device_get(self._panel(state, self._pictured))
        if jax.process_index() == 0:
            try:  # of any kind: matplotlib reads the user's settings
                png = draw(panel, f"step {number}")
                path = figure_path(self._workdir, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_bytes(path, png)
                self._writer.image(number, "panel", pixels_of(png))
            except Exception as error:
                logging.warning("the figure of step %d is missing: %s", number, one_line(error))

    def conclude(self, state: TrainState, seconds: float) -> None:
        """What to remember of the run, and where to look."""
        probes = [line for line in read_metrics(self._workdir) if PROBE in line]
        accuracies: dict[str, float | None] = {}
        for line in probes:
            if line["step"]:
                accuracies["trained encoder"] = line[PROBE]
            else:
                accuracies |= {"raw pixels": line[PIXELS], "untrained encoder": line[PROBE]}
        facts: dict[str, Any] = {"time": console.duration(seconds)}
        facts |= {f"kNN, {name}": f"{value:.1f}%" for name, value in accuracies.items()}
        facts["metrics"] = str(self._workdir / "metrics.jsonl")
        if self._times.figures_every:
            facts["figure to open"] = str(figure_path(self._workdir, self._times.total))
        self.report.say(console.fact_table("Finished", facts))
