"""The driver of a study, which trains and evaluates all runs that have no stored result."""

import json
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from can_jax.checkpoint.lock import InUse, run_lock
from can_jax.config.durations import TOTAL
from can_jax.distributed.mesh import make_mesh
from can_jax.distributed.runtime import environment
from can_jax.evaluate.measure import MAP, measure
from can_jax.evaluate.reports.results import write_results
from can_jax.monitoring.console import duration, plain_console
from can_jax.monitoring.figures import figures_by_step
from can_jax.monitoring.jsonl import read_metrics
from can_jax.study.measures import CURVES, Result
from can_jax.study.plan import KEY_DIGITS, Arm, Plan, Run, same_settings, settings_of
from can_jax.train.flops import train_flops_per_image
from can_jax.train.pretrain import pretrain
from can_jax.train.start import make_directory
from can_jax.utils.errors import UserError
from can_jax.utils.files import replace_text

WAIT_SECONDS = 10.0  # The interval at which to poll runs that other processes train.


def curves_of(logged: list[dict[str, Any]]) -> list[dict[str, float | None]]:
    """Return a record of the metrics in `CURVES` for each logged step, with five significant
    digits.

    Logged values that were not finite are returned as None.
    """
    merged: dict[int, dict[str, float | None]] = {}
    for line in logged:
        record = {
            name: None if line[name] is None else float(f"{line[name]:.5g}")
            for name in CURVES
            if name in line
        }
        merged.setdefault(line["step"], {}).update(record)
    return [merged[step] for step in sorted(merged)]


def conclude(plan: Plan, run: Run, workdir: epath.Path) -> tuple[Result, dict[str, bytes]]:
    """Evaluate a finished run, and return its result and pictures.

    Args:
        plan: The plan of the study, which holds the configuration of the evaluation.
        run: The finished run to evaluate.
        workdir: The directory of the run. The evaluation is stored in the subfolder ``evaluation``
            of this directory.

    Returns:
        The result to store as JSON, and the content of each picture by file name. Pictures are
        returned only for seed 0 of an arm whose attribute ``pictured`` is True.
    """
    folder, pictured = workdir / "evaluation", run.arm.pictured and run.config.seed == 0
    outputs, encoder = measure(
        plan.evaluation, str(workdir), folder, run.arm.untrained, pictures=pictured
    )
    results = write_results(folder, outputs, plan.evaluation, encoder)
    logged = read_metrics(workdir)
    lines = [line for line in logged if "images_per_second" in line]
    rate = statistics.median(line["images_per_second"] for line in lines) if lines else None
    # Learning rates are selected on held-out training examples only.
    rows = [row for table in results["tables"].values() for row in table]
    held_out = [row["held-out top-1 (%)"] for row in rows if "held-out top-1 (%)" in row]
    pictures = {}
    if pictured:
        figures = figures_by_step(workdir).values()
        pictures = {path.name: path.read_bytes() for path in figures}
        pictures["map.svg"] = outputs.pictures[MAP].encode()
    result = {
        "arm": run.arm.name,
        "group": run.arm.group,
        "seed": run.config.seed,
        "learning_rate": run.config.optimizer.learning_rate,
        "steps": max(line["step"] for line in logged),
        "flops_per_image": train_flops_per_image(run.config),
        "images_per_second": rate,
        "held_out_top1": max(held_out, default=None),
        "metrics": results["metrics"],
        "examples": results["examples"],
        "curves": curves_of(logged),
        "config": settings_of(run.config),
        "evaluation": settings_of(plan.evaluation),
        "data": results["data"]["fingerprints"],
        "environment": environment(make_mesh(run.config.mesh)),
    }
    return result, pictures


def check_data(name: str, result: Result, results: epath.Path) -> None:
    """Check that a new result is of the same data as the stored ones.

    Args:
        name: The name of the run, for the message.
        result: The result to store.
        results: The folder of the stored results.

    Raises:
        UserError: The data differs.
    """
    for path in sorted(results.glob("*.json")):
        stored = json.loads(path.read_text()).get("data")
        if stored is not None and stored != result["data"]:
            raise UserError(
                f"{name} was evaluated on other data than {path}: give the original "
                "--config.recipe.data, or another --workdir and --results"
            )


def _work_of(config: Mapping[str, Any], flops_per_image: int) -> tuple[str, float]:
    """Return the key that sets a run's length, and a number proportional to its training time."""
    key = next(key for key in TOTAL if config.get(key) is not None)
    if key == "total_minutes":
        return key, float(config[key])
    images = config["batch_size"] if key == "total_steps" else 1
    return key, float(config[key]) * images * flops_per_image


def _beyond(accuracies: dict[float, float | None]) -> float | None:
    """Return the next learning rate to try, or None if there is none.

    The next rate is half the smallest rate if the smallest is the best, and twice the largest rate
    if the largest is the best. Return None otherwise. Also return None for a single learning rate,
    and until every learning rate has an accuracy.
    """
    best = _best(accuracies)
    if best is None or len(accuracies) < 2:
        return None
    if best == max(accuracies):
        return best * 2
    return best / 2 if best == min(accuracies) else None


def _best(accuracies: dict[float, float | None]) -> float | None:
    """Return the learning rate with the highest accuracy, or None until every rate has an
    accuracy."""
    measured = {rate: accuracy for rate, accuracy in accuracies.items() if accuracy is not None}
    if len(measured) < len(accuracies):
        return None
    return max(measured, key=lambda rate: measured[rate])


class Driver:
    """A driver that trains the runs of a study, and resumes an interrupted study.

    Args:
        plan: The plan of the study: its arms, recipe and evaluation.
        workdir: The directory that contains the run directories.
        results: The directory that contains a JSON file for each run with a result. The driver
            skips these runs.
    """

    def __init__(self, plan: Plan, workdir: epath.Path, results: epath.Path):
        self.plan, self.workdir, self.results = plan, workdir, results

    def name_of(self, run: Run) -> str | None:
        """Return the name of a run's result file without suffix, or None if there is no result.

        The file name contains a hash of the settings. For the same run, an older version of the
        package computed another hash, since it had fewer settings. Results of older package
        versions are found by their stored settings.
        """
        if (self.results / f"{run.name}.json").exists():
            return run.name
        for path in sorted(self.results.glob(f"{run.name[:-KEY_DIGITS]}*.json")):
            if same_settings(json.loads(path.read_text()), run, self.plan.evaluation):
                return path.stem
        return None

    def known(self, run: Run) -> Result | None:
        """Return the stored result of a run, or None if there is none. The returned dict also has
        the key ``file``, the name of the result file without suffix."""
        name = self.name_of(run)
        if name is None:
            return None
        return json.loads((self.results / f"{name}.json").read_text()) | {"file": name}

    def work(self) -> None:
        """Train all runs that have no result, and block until the study is complete.

        Several processes may call this method at once, and train different runs. Each process holds
        a lock on the run that it trains.
        """
        while missing := list(self.missing()):
            # `any` stops at the first run that was trained, since its result can add other runs.
            if not any(map(self._make, missing)):
                time.sleep(WAIT_SECONDS)  # Other processes are training all of them.

    def missing(self) -> Iterator[Run]:
        """Yield the runs that have no result and can be trained now.

        A tuned arm first has one run per learning rate, with seed 0. Once its rate is selected, an
        arm has one run per seed. An arm that is not tuned inherits a learning rate, so its runs
        start after this rate is selected.
        """
        for arm in self.plan.arms.values():
            runs: list[Run] = []
            if first := self.chosen(arm):
                runs = self._seeds(arm, first)
            elif arm.tuned:
                runs = [self.plan.run(arm, rate, seed=0) for rate in self.tried(arm)]
            yield from (run for run in runs if self.name_of(run) is None)

    def _make(self, run: Run) -> bool:
        """Train and evaluate a run, and store its result.

        Return False without training if another process holds the lock on the run.
        """
        workdir = self.workdir / run.name
        make_directory(workdir / "claim")
        try:
            with run_lock(workdir / "claim", wait=0.0, wait_ending=0.0):
                if self.known(run):
                    return True
                rate = run.config.optimizer.learning_rate
                self._say(f"{run.arm.name}, learning rate {rate:g}, seed {run.config.seed}")
                pretrain(run.config, workdir)
                result, pictures = conclude(self.plan, run, workdir)
                check_data(run.name, result, self.results)
                self.results.mkdir(parents=True, exist_ok=True)
                for name, content in pictures.items():
                    (self.results / f"{run.name}-{name}").write_bytes(content)
                text = json.dumps(result, indent=1) + "\n"
                replace_text(self.results / f"{run.name}.json", text)
                measures = (m for m in self.plan.measures if m.values([result]))
                scores = (f"{m.title} {m.spread([result])}" for m in measures)
                self._say(f"{run.name}: {', '.join(scores)}; {self._remaining()}")
        except InUse:
            return False
        jax.clear_caches()  # The next run compiles other programs.
        return True

    def _say(self, line: str) -> None:
        plain_console(width=120, soft_wrap=True, highlight=False).print(line, style="bold")

    def chosen(self, arm: Arm) -> Run | None:
        """Return the run of an arm at its best learning rate with seed 0.

        The best rate has the highest accuracy on held-out training examples. Return None until
        every learning rate has a result. If a study has only one learning rate, that rate is used
        even before it has a result.
        """
        rates = self.plan.learning_rates
        best = rates[0] if len(rates) == 1 else _best(self.tried(arm))
        return None if best is None else self.plan.run(arm, best, seed=0)

    def tried(self, arm: Arm) -> dict[float, float | None]:
        """Return the held-out accuracy in percent of each learning rate to try for an arm.

        The held-out examples are taken from the training examples, not from the test examples. An
        arm that is not tuned has the accuracies of the arm whose rate it inherits. The accuracy is
        None for a rate without a result. If the best of several rates is the largest, twice that
        rate is also tried; if it is the smallest, half that rate is also tried. More rates are
        added until the best one is neither the largest nor the smallest.
        """
        tuned = self.plan.tuned_like(arm)
        accuracies = {rate: self._held_out(tuned, rate) for rate in self.plan.learning_rates}
        while (rate := _beyond(accuracies)) is not None:
            accuracies[rate] = self._held_out(tuned, rate)
        return dict(sorted(accuracies.items()))

    def _held_out(self, arm: Arm, rate: float) -> float | None:
        result = self.known(self.plan.run(arm, rate, seed=0))
        return result["held_out_top1"] if result else None

    def _seeds(self, arm: Arm, first: Run) -> list[Run]:
        """Return the runs of an arm for all seeds, at the learning rate of ``first``."""
        rate = first.config.optimizer.learning_rate
        return [self.plan.run(arm, rate, seed) for seed in range(arm.seeds)]

    def made(self, arm: Arm) -> list[Result]:
        """Return the stored results of an arm at its best learning rate, in order of the seeds."""
        if (first := self.chosen(arm)) is None:
            return []
        runs = self._seeds(arm, first)
        return [result for run in runs if (result := self.known(run))]

    def progress(self) -> Iterator[str]:
        """Yield a line of progress per arm, and a line with the count and time of remaining runs.

        The line of an arm shows the number of its completed runs. While the best rate of an arm is
        unknown, its line shows the number of learning rates with a result.
        """
        for arm in self.plan.arms.values():
            if (run := self.chosen(arm)) is None:
                tuned, tried = self.plan.tuned_like(arm), list(self.tried(arm).values())
                measured = len(tried) - tried.count(None)
                whose = "" if tuned is arm else f" of {tuned.name!r}"
                yield f"{arm.name}: {measured} of {len(tried)} learning rates{whose} tried"
            else:
                rate = run.config.optimizer.learning_rate
                done = f"{len(self.made(arm))} of {arm.seeds} runs"
                yield f"{arm.name}: {done}, learning rate {rate:g}"
        yield self._remaining()

    def _remaining(self) -> str:
        """Return a line with the number of missing runs, and an estimate of their training time.

        The estimate is based on the median training speed of the stored results. The time is
        omitted if the length of a missing run is set by a key that no stored result uses.
        """
        missing = list(self.missing())
        paces: dict[str, list[float]] = {}
        for arm in self.plan.arms.values():
            for result in () if arm.untrained else self.made(arm):
                if rate := result.get("images_per_second"):
                    key, work = _work_of(result["config"], result["flops_per_image"])
                    images = result["steps"] * result["config"]["batch_size"]
                    paces.setdefault(key, []).append(images / rate / work)
        line = f"remaining runs: {len(missing)}"
        works = [
            _work_of(settings_of(run.config), train_flops_per_image(run.config))
            for run in missing
            if not run.arm.untrained
        ]
        if not works or not all(key in paces for key, _ in works):
            return line
        seconds = sum(statistics.median(paces[key]) * work for key, work in works)
        return f"{line}, about {duration(seconds)} of training at the speed of the finished runs"
