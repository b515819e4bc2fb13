"""Trains what a study still lacks, and writes down what each run found."""

import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from can_jax.checkpoint.lock import InUse, run_lock
from can_jax.distributed.mesh import make_mesh
from can_jax.distributed.runtime import environment
from can_jax.evaluate.protocols.registry import MAP, measure
from can_jax.evaluate.reports.pictures import figures_of
from can_jax.evaluate.reports.results import write_results
from can_jax.monitoring.console import plain_console
from can_jax.monitoring.metrics import read_metrics
from can_jax.study.plan import KEY_DIGITS, Arm, Plan, Run, flops, same_settings, settings_of
from can_jax.train.pretrain import pretrain
from can_jax.train.run import make_directory
from can_jax.utils.files import replace_text

WAIT_SECONDS = 10.0  # until what other processes have left is looked at again
Result = dict[str, Any]
# Columns of a run's curves, of all that `metrics.jsonl` holds.
CURVES = (
    "step", "epoch", "loss/total", "loss/contrastive", "loss/reconstruction", "loss/denoising",
    "embedding/std", "embedding/effective_rank", "contrastive/top1", "grad_norm", "probe/knn",
    "probe/knn_pixels",
)  # fmt: skip


def curves_of(workdir: epath.Path) -> list[dict[str, float]]:
    """What a run logged of `CURVES`, a record a step, to five digits."""
    merged: dict[int, dict[str, float]] = {}
    for line in read_metrics(workdir):
        wanted = {name: float(f"{line[name]:.5g}") for name in CURVES if name in line}
        merged.setdefault(line["step"], {}).update(wanted)
    return [merged[step] for step in sorted(merged)]


def conclude(plan: Plan, run: Run, workdir: epath.Path) -> tuple[Result, dict[str, bytes]]:
    """Measure a finished run: its result, and, of the first seed of an arm that has them, pictures
    by file name."""
    place, pictured = workdir / "evaluation", run.arm.pictured and run.config.seed == 0
    findings, subject = measure(
        plan.evaluation, str(workdir), place, run.arm.untrained, pictures=pictured
    )
    found = write_results(place, findings, plan.evaluation, subject)
    lines = [line for line in read_metrics(workdir) if "images_per_second" in line]
    rate = statistics.median(line["images_per_second"] for line in lines) if lines else None
    # What it was chosen by is of training examples alone.
    held_out = [row for rows in found["tables"].values() for row in rows]
    pictures = {}
    if pictured:
        pictures = {f"{path.stem}.png": path.read_bytes() for path in figures_of(workdir)}
        # A file of its own needs the namespace, which a page's own picture does not.
        whole = findings.pictures[MAP].replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        pictures["map.svg"] = whole.encode()
    result = {
        "arm": run.arm.name,
        "group": run.arm.group,
        "seed": run.config.seed,
        "learning_rate": run.config.optimizer.learning_rate,
        "steps": run.config.total_steps,
        "flops_per_image": flops(run.config),
        "images_per_second": rate,
        "held_out_top1": max(row["held-out top-1 (%)"] for row in held_out),
        "metrics": found["metrics"],
        "examples": found["examples"],
        "curves": curves_of(workdir),
        "config": settings_of(run.config),
        "evaluation": settings_of(plan.evaluation),
        "data": found["data"]["fingerprints"],
        "environment": environment(make_mesh(run.config.mesh)),
    }
    return result, pictures


def _beyond(found: dict[float, float | None]) -> float | None:
    """The learning rate next to the best of `found`, where that is an outermost of several."""
    known = {rate: accuracy for rate, accuracy in found.items() if accuracy is not None}
    if len(known) < max(2, len(found)):
        return None
    best = max(known, key=lambda rate: known[rate])
    return {max(known): best * 2, min(known): best / 2}.get(best)


class Driver:
    """Runs a study, going on where it was.

    Args:
        plan: of the study.
        workdir: for the run directories.
        results: for a JSON file a run; a run that has one is not made again.
    """

    def __init__(self, plan: Plan, workdir: epath.Path, results: epath.Path):
        self.plan, self.workdir, self.results = plan, workdir, results

    def name_of(self, run: Run) -> str | None:
        """Return the name of a run's result, None without one.

        The name has a key of all settings, so a result that was made when there were fewer settings
        has another one.
        """
        if (self.results / f"{run.name}.json").exists():
            return run.name
        for path in sorted(self.results.glob(f"{run.name[:-KEY_DIGITS]}*.json")):
            if same_settings(json.loads(path.read_text()), run, self.plan.evaluation):
                return path.stem
        return None

    def known(self, run: Run) -> Result | None:
        """What a run found, and the name of its `file`, if it was made."""
        name = self.name_of(run)
        if name is None:
            return None
        return json.loads((self.results / f"{name}.json").read_text()) | {"file": name}

    def work(self) -> None:
        """Make every run that lacks; several processes may do so at once, each another run."""
        while missing := list(self.missing()):
            if not any(map(self._make, missing)):
                time.sleep(WAIT_SECONDS)  # the others have them all

    def missing(self) -> Iterator[Run]:
        """Runs that can be made now: those that look for a learning rate, then those with it."""
        for arm in self.plan.arms.values():
            runs = [self.plan.run(arm, rate, seed=0) for rate in self.tried(arm) if arm.tuned]
            if first := self.chosen(arm):
                runs = self._seeds(arm, first)
            yield from (run for run in runs if self.name_of(run) is None)

    def _make(self, run: Run) -> bool:
        """Train a run and write down what it found; or, if another process is at it, do not."""
        workdir = self.workdir / run.name
        make_directory(workdir / "claim")
        try:
            with run_lock(workdir / "claim", wait=0.0, wait_ending=0.0):
                if self.known(run):
                    return True
                rate = run.config.optimizer.learning_rate
                self._say(f"{run.arm.name}, learning rate {rate:g}, seed {run.config.seed}")
                pretrain(run.config, workdir)
                found, pictures = conclude(self.plan, run, workdir)
                self.results.mkdir(parents=True, exist_ok=True)
                for name, content in pictures.items():
                    (self.results / f"{run.name}-{name}").write_bytes(content)
                text = json.dumps(found, indent=1) + "\n"
                replace_text(self.results / f"{run.name}.json", text)
                self._say(f"{run.name}: linear {found['metrics']['linear/top1']:.2f} %")
        except InUse:
            return False
        jax.clear_caches()  # the next run's programs are others
        return True

    def _say(self, line: str) -> None:
        plain_console(width=120, soft_wrap=True, highlight=False).print(line, style="bold")

    def chosen(self, arm: Arm) -> Run | None:
        """The first run of an arm at its learning rate, that with which the first seed did best on
        held-out training examples; None while that is not known."""
        found = self.tried(arm)
        known = {rate: accuracy for rate, accuracy in found.items() if accuracy is not None}
        if len(known) < len(found):
            return None
        return self.plan.run(arm, max(known, key=lambda rate: known[rate]), seed=0)

    def tried(self, arm: Arm) -> dict[float, float | None]:
        """Accuracy on held-out training examples (%) by learning rate, None where it is not known.

        The study's rates go on, doubled or halved, for as long as the best is an outermost one.
        """
        tuned = self.plan.tuned_like(arm)
        found = {rate: self._held_out(tuned, rate) for rate in self.plan.learning_rates}
        while (rate := _beyond(found)) is not None:
            found[rate] = self._held_out(tuned, rate)
        return dict(sorted(found.items()))

    def _held_out(self, arm: Arm, rate: float) -> float | None:
        result = self.known(self.plan.run(arm, rate, seed=0))
        return result["held_out_top1"] if result else None

    def _seeds(self, arm: Arm, first: Run) -> list[Run]:
        """All runs of an arm, given its first."""
        rate = first.config.optimizer.learning_rate
        return [self.plan.run(arm, rate, seed) for seed in range(arm.seeds)]

    def made(self, arm: Arm) -> list[Result]:
        """What is known of an arm at its learning rate."""
        if (first := self.chosen(arm)) is None:
            return []
        runs = self._seeds(arm, first)
        return [found for run in runs if (found := self.known(run))]

    def progress(self) -> Iterator[str]:
        """A line an arm: how many of its runs are done."""
        for arm in self.plan.arms.values():
            if (run := self.chosen(arm)) is None:
                tuned, tried = self.plan.tuned_like(arm), list(self.tried(arm).values())
                known = len(tried) - tried.count(None)
                whose = "" if tuned is arm else f" of {tuned.name!r}"
                yield f"{arm.name}: {known} of {len(tried)} learning rates{whose} tried"
            else:
                rate = run.config.optimizer.learning_rate
                done = f"{len(self.made(arm))} of {arm.seeds} runs"
                yield f"{arm.name}: {done}, learning rate {rate:g}"
