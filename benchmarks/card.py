"""Benchmarks on an accelerator that end after a given number of minutes.

    python benchmarks/card.py --minutes=9 --part=step [--models=vit_l,vit_b,vit_h]
        [--variant='unrolled: model.scan=False model.remat=none'] [--config.KEY=VALUE]
    python benchmarks/card.py --minutes=9 --part=kernels
    python benchmarks/card.py --minutes=9 --part=study [--data=FOLDER] [--cells=a,b:EPOCHS]
        [--epochs=N] [--seeds=N] [--learning_rates=0.001,0.002]
    python benchmarks/card.py --minutes=9 --part=input [--data=FOLDER]

The script runs in a checkout, without an installation of the package. `step`, `kernels` and `study`
need only JAX, Flax, Optax, Orbax, NumPy, etils, absl, rich, jaxtyping and ml_collections. Each
result is written at once to OUT/card-PART.json, with the device, the versions and the commit. A
later run with the same OUT adds its results to the file: finished cells are skipped, a cell in
progress is resumed, and a model that is measured again replaces its results.

- `step`: measures the train step of each model, alternating with the same step in PyTorch, eager
  and compiled, if PyTorch is installed. A variant is a list of changes to the recipe.
- `kernels`: measures each custom operation and its counterpart in a library.
- `study`: measures the kNN accuracy of cells of a study on CIFAR-10, whose images stay in device
  memory. FOLDER holds train*.npz and test*.npz; without FOLDER, the images are synthetic, which
  the results state. Each finished cell's encoders are stored as OUT/CELL-encoder-SEED.npz for
  `can_jax.load`. Given learning rates, each method first trains briefly with all of them at once,
  without the last tenth of the training images. Its cells use the rate with the highest kNN
  accuracy on that tenth.
- `input`: measures the input pipeline, and a pipeline with Pillow as a baseline.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory, too.

from ml_collections import ConfigDict  # noqa: E402

from can_jax.config.baselines import changed  # noqa: E402
from can_jax.config.durations import TOTAL  # noqa: E402
from can_jax.config.resolve import load_recipe  # noqa: E402
from can_jax.study.cells import CELLS  # noqa: E402
from can_jax.utils.errors import UserError, one_line  # noqa: E402
from can_jax.utils.files import replace_text  # noqa: E402

# The batch sizes of each model. The first is also measured in PyTorch; the others are measured if
# time is left.
BATCHES = {"vit_l": (64, 128), "vit_b": (256, 512), "vit_h": (32, 64)}
SAVE_SECONDS = 60.0  # The interval at which a cell in progress is saved.
HELD_OUT = 0.1  # The fraction of the training images that chooses a learning rate.
COMPILERS = 4  # Cells compiled at a time.
MARGIN = 10.0  # Seconds before the end in which no measurement is started.
SHARE = 0.6  # The fraction of the remaining time for a model, if further models follow.
GRACE = 30.0  # Seconds after the time of a model at which its process is killed.


class Clock:
    """The remaining time for measurements. SIGTERM ends it at once."""

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: Any) -> None:
        self._end = -1.0

    def left(self) -> float:
        """Return the remaining seconds for measurements, negative after the end."""
        return self._end - time.monotonic() - MARGIN


class Report:
    """The JSON file of a part, which is written after each result.

    Args:
        path: The path of the file. Results that it already holds are retained.
        facts: The device, versions and commit of this run.
    """

    def __init__(self, path: Path, facts: dict[str, Any]):
        self.path, self._facts = path, facts
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = json.loads(path.read_text()) if path.exists() else {}
        self.results: dict[str, Any] = stored.get("results", {})
        self._runs: list[dict[str, Any]] = stored.get("runs", [])

    def write(self) -> None:
        """Write the results and the facts of all runs."""
        content = {"runs": [*self._runs, self._facts], "results": self.results}
        replace_text(self.path, json.dumps(content, indent=1) + "\n")

    def add(self, name: str, result: Any) -> None:
        """Store a result under a name, and write the file."""
        self.results[name] = result
        self.write()


def say(line: str) -> None:
    """Print a line without buffering."""
    print(line, flush=True)


def changes_of(text: str) -> dict[str, Any]:
    """Parse assignments such as ``model.scan=False``, separated by spaces.

    Raises:
        UserError: A word is not an assignment.
    """
    changes = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word!r} is not an assignment such as model.scan=False")
        try:
            changes[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            changes[key] = value
    return changes


def facts_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the device, the versions and the commit of this run."""
    import jax

    from can_jax.distributed.mesh import make_mesh
    from can_jax.distributed.runtime import environment

    mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
    facts = environment(mesh)
    facts["commit"] = options.commit or facts["commit"]
    # The stored command has a path relative to the checkout, and no folder of the results.
    script = Path(__file__).resolve().relative_to(ROOT)
    words = [
        w for w in sys.argv[1:] if w not in ("--out", f"--out={options.out}", str(options.out))
    ]
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return {
        "command": shlex.join(["python", script.as_posix(), *words]),
        "card": jax.devices()[0].device_kind,
        "memory_bytes": memory,
        "environment": facts,
    }


def run_step(options: argparse.Namespace, report: Report | None, clock: Clock) -> None:
    """Measure the step of each model in a process of its own.

    JAX does not return memory before a process ends, and the failure of one model must not end the
    others.
    """
    models = options.models.split(",")
    if unknown := [name for name in models if name not in BATCHES]:
        raise UserError(f"--models={unknown[0]}: choose from {', '.join(BATCHES)}")
    for index, name in enumerate(models):
        last = index + 1 == len(models)
        seconds = clock.left() * (1.0 if last else SHARE)
        if seconds < MARGIN:
            say(f"no time is left for {', '.join(models[index:])}")
            break
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
        command += [f"--models={name}", f"--minutes={(seconds + MARGIN) / 60}", "--in_process"]
        say(f"{name}: {seconds:.0f} s")
        process = subprocess.Popen(command)
        try:
            process.wait(seconds + MARGIN + GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            say(f"{name} was killed after {seconds + MARGIN + GRACE:.0f} s; its results remain")
        if code := process.poll():
            say(f"{name} ended with code {code}")


def run_model(options: argparse.Namespace, report: Report, clock: Clock) -> None:
    """Measure the step of one model, and the same step in PyTorch if it is installed."""
    from can_jax.benchmark.variants import measure_variants

    name = options.models
    recipe = recipe_of(name, options)
    recipe = changed(recipe, dict.fromkeys(TOTAL) | {"total_steps": 1, "mesh.fsdp": 1})
    variants: dict[str, dict[str, Any]] = {"recipe": {}}
    for text in options.variant:
        label, _, changes = text.partition(":")
        variants[label.strip()] = changes_of(changes)
    with_peers = options.peers and importable("torch")
    if options.peers and not with_peers:
        say("PyTorch is not installed; only this package is measured")
    first, *others = (options.batch,) if options.batch else BATCHES[name]
    for batch in (first, *others):
        if clock.left() < 0:
            say(f"no time is left for {name} with {batch} images")
            break
        measure_variants(
            changed(recipe, {"batch_size": batch}), variants if batch == first else {"recipe": {}},
            peers=with_peers and batch == first, rounds=options.rounds, seconds=options.seconds,
            product=options.product, describe=planned, left=clock.left,
            report=functools.partial(report_step, report, f"{name}, {batch} images"),
        )  # fmt: skip


def planned(ours: Any) -> dict[str, Any]:
    """Return the planner's estimate of a compiled step on this device."""
    import jax

    from can_jax.distributed.hardware import chip_of
    from can_jax.distributed.mesh import make_mesh
    from can_jax.plan.clocks import calibration_of, clock_of
    from can_jax.plan.cycles import estimate_step
    from can_jax.plan.program import Program
    from can_jax.plan.report import charge_as_json
    from can_jax.plan.topology import Topology

    chip = chip_of(jax.devices()[0].device_kind)
    clock = clock_of(chip) if chip else None
    if chip is None or clock is None:
        return {}
    mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
    topology = Topology("card", jax.devices(), chip, (1,), 1, exact=True, hosts=True)
    estimate = estimate_step(Program(ours.program.as_text()), mesh, topology, clock)
    return {
        "planner": {
            "estimated_seconds": estimate.seconds,
            "expected_seconds": estimate.seconds / calibration_of(chip).ratio,
            "kernels": estimate.kernels,
            "memory_traffic_bytes": estimate.traffic,
            "memory_traffic_outside_products_bytes": estimate.traffic_outside_products,
            "parts": estimate.parts(),
            "top": [charge_as_json(charge) for charge in estimate.top(20)],
        }
    }


def report_step(report: Report, name: str, result: dict[str, Any]) -> None:
    """Store the results of a model so far, and print them."""
    report.add(name, result)
    for label, step in result["steps"].items():
        rate = step.get("images_per_second")
        text = step.get("error") or (f"{rate:.1f} images/s" if rate else "compiled")
        mfu = f", {step['mfu']:.1%} MFU" if "mfu" in step else ""
        say(f"{name}, {label}: {text}{mfu}")


def run_kernels(options: argparse.Namespace, report: Report, clock: Clock) -> None:
    """Measure the custom operations."""
    from can_jax.benchmark.kernels import SHAPES, SMALL, measure_kernels

    shapes = SMALL if options.small else SHAPES
    for name, results in measure_kernels(shapes, options.rounds, 1 if options.small else 20):
        report.add(name, results)
        for kind, result in results.items():
            time_of = result.get("milliseconds")
            text = result["unsupported"] if time_of is None else f"{time_of:.3f} ms"
            say(f"{name}, {kind}: {text}")
        if clock.left() < 0:
            say("no time is left for further operations")
            break


def run_study(options: argparse.Namespace, report: Report, clock: Clock) -> None:
    """Tune the learning rates of the cells if some are given, then train the cells."""
    from can_jax.benchmark.device_cells import make_cell, read_images

    recipe = recipe_of("cifar10", options)
    images = read_images(options.data, options.images, recipe.data.image_size)
    changes = {"can": {}, **CELLS}
    lengths = cell_lengths(options.cells or ",".join(changes), options.epochs)
    methods = {name: name.partition(":")[0] for name in lengths}
    if unknown := [method for method in methods.values() if method not in changes]:
        raise UserError(f"--cells={unknown[0]}: choose from {', '.join(changes)}")
    rates, held_out = options.learning_rates, images.held_out(HELD_OUT)
    with ThreadPoolExecutor(COMPILERS) as pool:  # Its threads compile while a cell trains.
        queue = Queue(options, report, clock, pool)
        tuning = {method: f"{method}, learning rates" for method in methods.values() if rates}
        for method, name in tuning.items():
            epochs, zeros = options.tuning_epochs, [0] * len(rates)
            queue.add(make_cell(name, recipe, changes[method], epochs, zeros, held_out, rates))
        for method in dict.fromkeys(methods.values()):
            best = {}
            if rates:
                if not queue.train(tuning[method]):
                    return
                accuracies = report.results[tuning[method]]["knn"]
                best = {"optimizer.learning_rate": rates[accuracies.index(max(accuracies))]}
                say(f"{method}: the best learning rate is {best['optimizer.learning_rate']}")
            for name in (name for name in lengths if methods[name] == method):
                settings, seeds = changes[method] | best, range(options.seeds)
                queue.add(make_cell(name, recipe, settings, lengths[name], seeds, images))
        queue.train()


def cell_lengths(text: str, epochs: int) -> dict[str, int]:
    """Return the epochs of cells such as ``can,simclr:60``, by their text."""
    lengths = {}
    for name in text.split(","):
        _, colon, own = name.partition(":")
        if colon and not own.isdecimal():
            raise UserError(f"--cells={name}: write NAME or NAME:EPOCHS")
        lengths[name] = int(own) if colon else epochs
    return lengths


class Queue:
    """The cells of a study that wait for training. Threads compile them meanwhile."""

    def __init__(
        self, options: argparse.Namespace, report: Report, clock: Clock, pool: ThreadPoolExecutor
    ):
        self._options, self._report, self._clock, self._pool = options, report, clock, pool
        self._waiting: list[tuple[Any, Future[Any]]] = []
        self._placed: dict[int, Any] = {}

    def add(self, cell: Any) -> None:
        """Let a thread compile a cell, unless the report holds its results."""
        import jax

        from can_jax.benchmark.device_study import Training

        if self._report.results.get(cell.name, {}).get("finished") == cell.key:
            say(f"{cell.name} is finished")
            return
        images = cell.images
        if id(images) not in self._placed:
            self._placed[id(images)] = jax.device_put((images.train, images.train_labels))
        placed = self._placed[id(images)]
        self._waiting.append((cell, self._pool.submit(lambda: Training(cell, placed).compile())))

    def train(self, last: str | None = None) -> bool:
        """Train the waiting cells in order, up to the cell ``last`` if it is given.

        Returns:
            Whether the time sufficed.
        """
        names = [cell.name for cell, _ in self._waiting]
        if last in names:
            names = names[: names.index(last) + 1]
        elif last is not None:  # It is finished already.
            names = []
        for _ in names:
            cell, compiled = self._waiting.pop(0)
            if self._clock.left() < 0 or not self._train(cell, compiled):
                for name in (cell.name, *(cell.name for cell, _ in self._waiting)):
                    say(f"no time is left for {name}; the same command continues")
                return False
        return True

    def _train(self, cell: Any, compiled: Future[Any]) -> bool:
        """Train a cell to its end, or until no time is left; return whether it is finished."""
        clock, report, folder = self._clock, self._report, self._report.path.parent
        started = time.monotonic()
        training = compiled.result()
        say(f"{cell.name}: compiled, waited {time.monotonic() - started:.0f} s")
        entry = restore_or_start(training, report, folder)
        began, first, saved = time.monotonic(), training.epoch, time.monotonic()
        for metrics in training.train(cell.epochs):
            record: dict[str, Any] = {"epoch": training.epoch, "metrics": rounded(metrics)}
            done = training.epoch == cell.epochs
            if done or training.epoch % self._options.probe_epochs == 0:
                record["knn"] = training.accuracies()
            entry["curve"].append(record)
            each = (time.monotonic() - began) / (training.epoch - first)
            later = [waiting.epochs for waiting, _ in self._waiting]
            say(progress(cell, record, each, later, clock.left()))
            entry["images_per_second"] = len(cell.seeds) * len(cell.images.train) / each
            if not done and (clock.left() < each or time.monotonic() - saved > SAVE_SECONDS):
                training.save(folder)
                report.add(cell.name, entry)
                saved = time.monotonic()
            if not done and clock.left() < each:
                return False
        entry |= {"finished": cell.key, "knn": entry["curve"][-1]["knn"]}
        report.add(cell.name, entry)
        if len(set(cell.seeds)) == len(cell.seeds):  # Otherwise the learning rate was tuned.
            training.save_encoders(folder)
        training.discard(folder)
        return True


def restore_or_start(training: Any, report: Report, folder: Path) -> dict[str, Any]:
    """Restore a cell in progress, or start it; return its entry of the results."""
    cell, entry = training.cell, report.results.get(training.cell.name, {})
    if entry.get("started") == cell.key and training.restore(folder):
        say(f"{cell.name} resumes after epoch {training.epoch}")
        entry["curve"] = [line for line in entry["curve"] if line["epoch"] <= training.epoch]
        return entry
    training.start()
    before = {"epoch": 0, "knn": training.accuracies()}
    return {
        "started": cell.key,
        "config": json.loads(cell.config.to_json_best_effort()),
        "seeds": list(cell.seeds),
        "learning_rates": list(cell.learning_rates),
        "images": cell.images.origin,
        "linear_bound": training.linear_bound,
        "curve": [before],
    }


def numbers(text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas."""
    return tuple(map(float, text.split(",")))


def rounded(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    """Round metrics to six significant digits."""
    return [{name: float(f"{value:.6g}") for name, value in one.items()} for one in metrics]


def progress(cell: Any, record: dict[str, Any], each: float, later: list[int], left: float) -> str:
    """Return a status line of a cell in progress; ``later`` holds the epochs of waiting cells."""
    accuracy = "".join(f" {value:.2f}" for value in record.get("knn", ()))
    rest = each * (cell.epochs - record["epoch"])
    return (
        f"{cell.name}: epoch {record['epoch']}/{cell.epochs}, {each:.2f} s each, {rest:.0f} s for "
        f"this cell, {rest + each * sum(later):.0f} s for all, {left:.0f} s left"
        + (f"; kNN{accuracy}" if accuracy else "")
    )


def run_input(options: argparse.Namespace, report: Report, clock: Clock) -> None:
    """Measure the input pipeline."""
    missing = [name for name in ("tensorflow", "PIL") if not importable(name)]
    if missing:
        raise UserError(f"--part=input needs {' and '.join(missing)}, which cannot be imported")
    from can_jax.benchmark.input import measure_input
    from can_jax.config.resolve import resolve

    with contextlib.ExitStack() as stack:
        folder = options.data or stack.enter_context(
            random_photographs(32 if options.small else 512)
        )
        recipe = recipe_of("vit_b", options)
        recipe = changed(recipe, {"data.path": folder, "batch_size": 8 if options.small else 256})
        results = measure_input(resolve(recipe), options.rounds, options.seconds)
    report.add("input", results | {"images": options.data or "synthetic JPEGs"})
    say(json.dumps(results))


@contextlib.contextmanager
def random_photographs(count: int) -> Iterator[str]:
    """Write JPEGs of smooth random colors, 500 x 375, to a temporary folder."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            coarse = rng.integers(0, 256, (24, 32, 3), np.uint8)
            image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
            image.save(Path(folder) / f"{index:04}.jpg", quality=90)
        yield folder


def importable(name: str) -> bool:
    """Return whether a module can be imported."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def recipe_of(name: str, options: argparse.Namespace) -> ConfigDict:
    """Return a shipped recipe with the changes of the command line."""
    recipe = load_recipe(__file__, name)
    return changed(recipe, {"data.path": recipe.data.path or "-"} | options.changes)


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the options of a command line.

    Raises:
        UserError: An option is unknown or has a wrong value.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--part", choices=tuple(PARTS), required=True)
    add("--minutes", type=float, default=9.0, help="the total time")
    add("--out", type=Path, default=Path("runs/card"), help="the folder of the results")
    add("--commit", help="the commit, where the checkout has no history")
    add("--rounds", type=int, default=5, help="turns of each measurement")
    add("--seconds", type=float, default=2.0, help="the length of a turn")
    add("--models", default=",".join(BATCHES), help="step: the recipes")
    add("--batch", type=int, help="step: images of a step")
    add("--variant", action="append", default=[], help="step: NAME: KEY=VALUE KEY=VALUE")
    add("--peers", action=argparse.BooleanOptionalAction, default=True, help="step: PyTorch")
    add("--product", type=int, default=8192, help="step: rows of the matrix product")
    add("--in_process", action="store_true", help=argparse.SUPPRESS)
    add("--data", help="study, input: the folder of the images")
    add("--cells", help="study: NAME or NAME:EPOCHS, separated by commas; all by default")
    add("--epochs", type=int, default=100, help="study: the length of a cell")
    add("--learning_rates", type=numbers, default=(), help="study: values to choose from")
    add("--tuning_epochs", type=int, default=10, help="study: the length of a run of the choice")
    add("--seeds", type=int, default=3, help="study: runs of a cell")
    add("--probe_epochs", type=int, default=10, help="study: epochs between kNN accuracies")
    add("--images", type=int, help="study: training images; all by default")
    add("--small", action="store_true", help="kernels, input: sizes for a test")
    options, rest = parser.parse_known_args(argv)
    prefix = "--config."
    if unknown := [word for word in rest if not word.startswith(prefix) or "=" not in word]:
        raise UserError(f"unknown option {unknown[0]}; see --help")
    options.changes = changes_of(" ".join(word.removeprefix(prefix) for word in rest))
    return options


PARTS: dict[str, Callable[..., None]] = {
    "step": run_step, "kernels": run_kernels, "study": run_study, "input": run_input,
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Run a part; return the exit code."""
    try:
        options = parse(argv)
        clock = Clock(options.minutes)
        if options.part == "step" and not options.in_process:
            run_step(options, None, clock)
            return 0
        part = run_model if options.part == "step" else PARTS[options.part]
        path = options.out / f"card-{options.part}.json"
        report = Report(path, facts_of(options))
        report.write()
        part(options, report, clock)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    say(f"{path} has the results")
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # A thread that still compiles must not delay the exit.
