"""What watches a run: metrics, probe and figures."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from can_jax.data.evaluation import EvaluationSet
from can_jax.data.loader import Loader
from can_jax.evaluate.probe import KnnProbe
from can_jax.forward import heads
from can_jax.observe import console
from can_jax.observe.clock import InputWatch, StepClock
from can_jax.observe.figures import make_panel, save_panel
from can_jax.observe.flops import peak_flops, train_flops_per_image
from can_jax.observe.metrics import MetricWriter, to_scalars
from can_jax.parallel.mesh import replicated
from can_jax.step import Step, TrainState
from can_jax.timetable import Timetable


class Hook(NamedTuple):
    """Something to do with the state now and then: every so many steps, and after the last."""

    every: int
    act: Callable[[int, TrainState], None]


class Observers:
    """What watches a run: metrics, probe and figures."""

    def __init__(
        self,
        step: Step,
        source: Any,
        mesh: Mesh,
        times: Timetable,
        workdir: epath.Path,
        writer: MetricWriter,
        report: console.Reporter,
        run: dict[str, Any],
    ):
        self.report = report
        self._step, self._mesh, self._times = step, mesh, times
        self._workdir, self._writer, self._run = workdir, writer, run
        peak, self._peak_source = peak_flops(step.config.model.dtype)
        self._peak = peak * mesh.size
        self._flops = train_flops_per_image(step.config, heads(step.config))
        self._skipped_steps = 0.0
        self._input = InputWatch()
        self._probe = None
        if times.probe_every:
            self._probe = KnnProbe(step.config, step, source, mesh)
        if times.figures_every:
            count = step.config.figures.images
            self._pictured = EvaluationSet(step.config, source, count, labelled=False).images()
            self._panel = jax.jit(
                functools.partial(make_panel, step), out_shardings=replicated(mesh)
            )

    def hooks(self) -> list[Hook]:
        """Those that the configuration asks for."""
        hooks = []
        if self._times.probe_every:
            hooks.append(Hook(self._times.probe_every, self.probe))
        if self._times.figures_every:
            hooks.append(Hook(self._times.figures_every, self.picture))
        return hooks

    def before(self, state: TrainState) -> None:
        """The state of things before the first step."""
        if self._probe:
            pixels, untrained = self._probe.on_pixels(), self._probe(state)
            self._run |= {"knn/pixels": pixels, "knn/untrained": untrained}
            self._writer.scalars(0, {"probe/knn": untrained, "probe/knn_pixels": pixels})
            self.report.say(f"kNN: raw pixels {pixels:.1f}%, untrained encoder {untrained:.1f}%")

    def log(self, number: int, metrics: dict[str, Any], clock: StepClock, loader: Loader) -> None:
        """Close the clock's window, and write down what is known."""
        window, config = clock.window(), self._step.config
        images_per_second = config.batch_size / window.step_seconds
        values = to_scalars(metrics) | {
            "examples": number * config.batch_size,
            "epoch": number * config.batch_size / self._times.examples,
            "images_per_second": images_per_second,
            "mfu": images_per_second * self._flops / self._peak,
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
        if jax.process_index() == 0:
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
