"""A page about a study: tables and plots, made of its result files alone."""

import statistics
from collections.abc import Callable

from etils import epath

from can_jax.errors import UserError
from can_jax.files import replace_text
from can_jax.study import plots
from can_jax.study.driver import Driver, Result, result_path
from can_jax.study.plan import Arm

FINDINGS = "FINDINGS.md"  # beside the results: what a person makes of them


def linear(result: Result) -> float:
    """Accuracy of linear heads, in percent."""
    return result["metrics"]["linear/top1"]


def neighbours(result: Result) -> float:
    """Accuracy of the last kNN probe, in percent."""
    return [point["probe/knn"] for point in result["curves"] if "probe/knn" in point][-1]


def spread(results: list[Result], measure: Callable[[Result], float]) -> str:
    """Mean, and deviation over seeds where there are several."""
    values = [measure(result) for result in results]
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"


def rows_to_table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown; all columns but the first to the right."""
    line = "|".join(["---"] + ["--:"] * (len(head) - 1))
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, *rows]).replace(
        "\n", f"\n|{line}|\n", 1
    )


class Report:
    """The page, and its plots beside it.

    Args:
        driver: of the study; nothing is trained.
        page: where it goes; plots go to a folder of its name.

    Raises:
        UserError: the study's reference has no result.
    """

    def __init__(self, driver: Driver, page: epath.Path):
        self._driver, self._plan, self._page = driver, driver.plan, page
        self._folder = page.parent / page.stem
        self._found = {name: driver.made(arm) for name, arm in self._plan.arms.items()}
        self._reference = self._found[self._plan.reference]
        if not self._reference:
            raise UserError(
                f"{driver.results} lacks {self._plan.reference!r} at some learning rate"
            )

    def write(self) -> None:
        """Write page and plots."""
        self._folder.mkdir(parents=True, exist_ok=True)
        findings = self._driver.results / FINDINGS
        parts = [
            f"# The study `{self._plan.name}`",
            findings.read_text().strip() if findings.exists() else "",
            "## Setting",
            self._setting(),
            "## Methods",
            self._methods(),
            f"![Learning curves]({self._folder.name}/curves.svg)",
            "## Learning rates",
            self._rates(),
            "## Choices",
            self._choices(),
            f"![Choices]({self._folder.name}/choices.svg)",
            "## What the networks draw",
            self._pictures(),
            "## Files",
            self._files(),
        ]
        plots.curves(self._methods_found(), self._folder / "curves.svg")
        choices = [(arm.name, self._found[arm.name]) for arm in self._singles()]
        plots.bars(choices, self._reference, linear, self._folder / "choices.svg")
        replace_text(self._page, "\n\n".join(part for part in parts if part) + "\n")

    def _setting(self) -> str:
        first, results = self._reference[0], self._driver.results
        config, examples = first["config"], first["examples"]
        model, side = config["model"], config["data"]["image_size"][0]
        return (
            f"{examples['train']:,} images to train on, {examples['test']:,} to test, {side} px; "
            f"an encoder {model['width']} wide and {model['depth']} deep, patches of "
            f"{model['patch_size']} px; batches of {config['batch_size']}, {first['steps']} steps. "
            "This page is made by `python -m can_jax.study "
            f"--config=configs/study/{self._plan.name}.py --report={self._page}` from the files in "
            f"[`{results}`](../{results}), each with its configuration, commit and machine. "
            "± is the standard deviation over seeds."
        )

    def _methods_found(self) -> dict[str, list[Result]]:
        """Results of the arms that are no choices of the reference, by name."""
        choices = self._singles()
        arms = [arm for arm in self._plan.arms.values() if arm not in choices]
        return {arm.name: self._found[arm.name] for arm in arms if self._found[arm.name]}

    def _singles(self) -> list[Arm]:
        """Arms that were run, and change the reference."""
        arms = self._plan.arms.values()
        wanted = self._plan.reference
        return [a for a in arms if a.like == wanted and not a.untrained and self._found[a.name]]

    def _methods(self) -> str:
        head = [
            "method", "seeds", "linear top-1 (%)", "kNN (%)", "steps", "MFLOP an image and step",
            "TFLOP in all", "images/s",
        ]  # fmt: skip
        rows = []
        for name, results in self._methods_found().items():
            first = results[0]
            total = first["flops_per_image"] * first["steps"] * first["config"]["batch_size"]
            rate = statistics.median(r["images_per_second"] or 0 for r in results)
            trained = not self._plan.arms[name].untrained
            rows.append(
                [name, str(len(results)), spread(results, linear), spread(results, neighbours)]
                + (
                    [str(first["steps"]), f"{first['flops_per_image'] / 1e6:.1f}"]
                    if trained
                    else ["", ""]
                )
                + ([f"{total / 1e12:.1f}", f"{rate:.0f}"] if trained else ["", ""])
            )
        return rows_to_table(head, rows)

    def _rates(self) -> str:
        rates = self._plan.learning_rates
        rows = []
        for arm in self._plan.arms.values():
            if arm.tuned:
                found = [self._driver.known(self._plan.run(arm, rate, 0)) for rate in rates]
                rows.append([arm.name, *(f"{r['held_out_top1']:.1f}" if r else "" for r in found)])
        head = ["linear top-1 on held-out training images (%)", *(f"{rate:g}" for rate in rates)]
        return rows_to_table(head, rows)

    def _choices(self) -> str:
        base = statistics.mean(linear(result) for result in self._reference)
        rows = [["", self._plan.reference, spread(self._reference, linear), "",
                 spread(self._reference, neighbours)]]  # fmt: skip
        for arm in self._singles():
            results = self._found[arm.name]
            gain = statistics.mean(linear(r) for r in results) - base
            row = [arm.group, arm.name, spread(results, linear), f"{gain:+.1f}"]
            rows.append([*row, spread(results, neighbours)])
        return rows_to_table(
            ["choice", "", "linear top-1 (%)", "to the reference", "kNN (%)"], rows
        )

    def _pictures(self) -> str:
        """Figures at several ages and maps, copied from beside the results."""
        lines = []
        for arm in self._plan.arms.values():
            run = self._driver.chosen(arm)
            if not arm.pictured or run is None:
                continue
            stem = result_path(self._driver.results, run).stem
            for path in sorted(self._driver.results.glob(f"{stem}-*.*g")):
                name = path.stem.removeprefix(f"{stem}-")
                copy = self._folder / f"{arm.name}_{name}{path.suffix}".replace(" ", "_")
                copy.write_bytes(path.read_bytes())
                what = (
                    "map of the test images" if name == "map" else f"step {int(name.split('_')[1])}"
                )
                lines.append(f"{arm.name}, {what}:\n\n![{what}]({self._folder.name}/{copy.name})")
        return "\n\n".join(lines)

    def _files(self) -> str:
        """Where every number is from."""
        rows = []
        for name, results in self._found.items():
            for result in results:
                file = f"{result['file']}.json"
                link = f"[`{file}`](../{self._driver.results}/{file})"
                commit = (result["environment"]["commit"] or "")[:9]
                rows.append(
                    [
                        name,
                        str(result["seed"]),
                        link,
                        f"`{commit}`",
                        result["environment"]["processor"],
                    ]
                )
        return rows_to_table(["arm", "seed", "file", "commit", "machine"], rows)
