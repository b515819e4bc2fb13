"""The Markdown report of a study, with tables and plots of its stored results."""

import json
import os

from etils import epath

from can_jax.config.resolve import from_json
from can_jax.evaluate.reports.markdown import code, fill, link, table
from can_jax.models.backbones import encoder_size
from can_jax.study.driver import Driver
from can_jax.study.measures import Result
from can_jax.study.plan import Arm
from can_jax.utils.errors import UserError
from can_jax.utils.files import replace_bytes, replace_text

# Files beside the results: a written interpretation, and the output of
# `benchmark step --parts --json`.
FINDINGS, COST = "FINDINGS.md", "cost.json"


class Report:
    """The report of a study: a Markdown page, and a folder of plots beside it.

    Args:
        driver: The driver of the study, from which the report reads results.
        page: The path of the Markdown file to write. The plots are written to a folder with the
            name of ``page`` without suffix.

    Raises:
        UserError: The reference arm of the study has no result at its best learning rate, or its
            results lack the most important metric.
    """

    def __init__(self, driver: Driver, page: epath.Path):
        self._driver, self._plan, self._page = driver, driver.plan, page
        self._folder = page.parent / page.stem
        self._results = {name: driver.made(arm) for name, arm in self._plan.arms.items()}
        self._reference = self._results[self._plan.reference]
        if not self._reference:
            raise UserError(
                f"{driver.results} lacks results of the arm {self._plan.reference!r} for at least "
                "one learning rate: run the study first"
            )
        headline = self._plan.measures[0]
        if not headline.values(self._reference):
            raise UserError(
                f"config.headline={headline.title!r}: the results of the reference arm "
                f"{self._plan.reference!r} lack this metric; choose another one"
            )

    def write(self) -> None:
        """Write the Markdown file and the plots."""
        from can_jax.study import plots  # imports matplotlib, in 0.7 s

        self._folder.mkdir(parents=True, exist_ok=True)
        findings = self._driver.results / FINDINGS
        plots.curves(self._method_results(), self._folder / "curves.svg")
        sections = {
            "Setting": self._setting(),
            "Methods": self._methods(),
            "Cost of a step": self._costs(),
            "Learning rates": self._rates(),
            "Choices": self._choices(),
            "Reconstructions and embedding maps": self._pictures(),
            "Files": self._files(),
        }
        parts = [f"# The study `{self._plan.name}`"]
        if findings.exists():
            parts.append(findings.read_text().strip())
        parts += [f"## {title}\n\n{body}" for title, body in sections.items() if body]
        replace_text(self._page, "\n\n".join(parts) + "\n")

    def _setting(self) -> str:
        first, results = self._reference[0], self._driver.results
        config, examples = from_json(json.dumps(first["config"])), first["examples"]
        size, (height, width) = encoder_size(config.model), config.data.image_size
        command = (
            f"python -m can_jax.study --config=study/{self._plan.name} --results={results} "
            f"--report={self._page}"
        )
        return fill(
            "Images have {size} px. The encoder has width {width}, depth {depth} and "
            "patches of {patch} px. The reference runs take {steps} steps with batches of {batch}. "
            "The evaluation {protocol} uses {train} training images and {test} test images. "
            "{command} writes this page from the files in {results}, which hold the configuration, "
            "commit and machine of each run. ± is the standard deviation over seeds.",
            size=f"{height} x {width}", width=size.width, depth=size.depth,
            patch=config.model.patch_size, steps=first["steps"], batch=config.batch_size,
            train=f"{examples['train']:,}", test=f"{examples['test']:,}",
            protocol=code(self._plan.evaluation.protocol), command=code(command),
            results=link(code(results), self._from_page(results)),
        )  # fmt: skip

    def _from_page(self, path: epath.Path) -> str:
        """Return a path relative to the page, for a link."""
        return os.path.relpath(path.resolve(), self._page.parent.resolve())

    def _method_results(self) -> dict[str, list[Result]]:
        """Return the results of the compared methods by arm name.

        Two kinds of arms are omitted: arms without results, and trained variants of the reference
        arm.
        """
        choices = self._singles()
        arms = [arm for arm in self._plan.arms.values() if arm not in choices]
        return {arm.name: self._results[arm.name] for arm in arms if self._results[arm.name]}

    def _singles(self) -> list[Arm]:
        """Return the trained variants of the reference arm that have results."""
        arms = self._plan.arms.values()
        reference = self._plan.reference
        return [
            a for a in arms if a.like == reference and not a.untrained and self._results[a.name]
        ]

    def _methods(self) -> str:
        measures = self._plan.measures
        titles = (measure.title for measure in measures)
        head = ["method", "seeds", *titles, "steps", "MFLOP per image and step", "total TFLOP"]
        rows = []
        for name, results in self._method_results().items():
            first = results[0]
            total = first["flops_per_image"] * first["steps"] * first["config"]["batch_size"]
            effort = [""] * 3
            if not self._plan.arms[name].untrained:
                flops = f"{first['flops_per_image'] / 1e6:.1f}"
                effort = [str(first["steps"]), flops, f"{total / 1e12:.1f}"]
            values = [measure.spread(results) for measure in measures]
            rows.append([name, str(len(results)), *values, *effort])
        plot = f"![Learning curves]({self._folder.name}/curves.svg)"
        return f"{table(rows, head, right=True)}\n\n{plot}"

    def _costs(self) -> str:
        """Return a table of step times of the methods, and of CAN with one part removed at a
        time."""
        path = self._driver.results / COST
        if not path.exists():
            return ""
        cost = json.loads(path.read_text())
        whole = cost["milliseconds"]["can"]
        rows = [
            [name, f"{spent / cost['batch_size']:.2f}", f"{spent / whole:.2f}"]
            for name, spent in cost["milliseconds"].items()
        ]
        ratio = cost["simclr_over_can"]
        return fill(
            "{command} measured these step times on {machine}, in turns. A step of SimCLR "
            "has {flops} times the FLOPs of a step of CAN and takes {time} times as long."
            "\n\n{table}",
            command=code(cost["command"]), machine=cost["environment"]["processor"],
            flops=f"{ratio['analytic_flops']:.2f}", time=f"{ratio['time']:.2f}",
            table=table(rows, ["step", "ms per image", "time relative to CAN"], right=True),
        )  # fmt: skip

    def _rates(self) -> str:
        if len(self._plan.learning_rates) == 1:
            return ""
        tried = {arm.name: self._driver.tried(arm) for arm in self._plan.arms.values() if arm.tuned}
        rates = sorted(set().union(*tried.values()))
        rows = []
        for name, by_rate in tried.items():
            accuracies = (by_rate.get(rate) for rate in rates)
            rows.append([name, *("" if a is None else f"{a:.1f}" for a in accuracies)])
        head = ["linear top-1 on held-out training images (%)", *(f"{rate:g}" for rate in rates)]
        return table(rows, head, right=True)

    def _choices(self) -> str:
        if not (choices := self._singles()):
            return ""
        from can_jax.study import plots

        first, *others = self._plan.measures
        changed = {arm.name: self._results[arm.name] for arm in choices}
        plots.bars(changed, self._reference, first, self._folder / "choices.svg")

        def row(group: str, name: str, results: list[Result], gain: str) -> list[str]:
            rest = [measure.spread(results) for measure in others]
            return [group, name, first.spread(results), gain, *rest]

        rows = [row("", self._plan.reference, self._reference, "")]
        for arm in choices:
            results = changed[arm.name]
            gain = first.gain(results, self._reference)
            rows.append(row(arm.group, arm.name, results, gain))
        titles = (measure.title for measure in others)
        head = ["choice", "", first.title, "gain over the reference", *titles]
        return f"{table(rows, head, right=True)}\n\n![Choices]({self._folder.name}/choices.svg)"

    def _pictures(self) -> str:
        """Copy the stored figures and embedding maps to the plot folder, and return links."""
        lines = []
        for arm in self._plan.arms.values():
            run = self._driver.chosen(arm)
            stem = self._driver.name_of(run) if run else None
            if not arm.pictured or stem is None:
                continue
            for path in sorted(self._driver.results.glob(f"{stem}-*.*g")):
                name = path.stem.removeprefix(f"{stem}-")
                copy = self._folder / f"{arm.name}_{name}{path.suffix}".replace(" ", "_")
                replace_bytes(copy, path.read_bytes())
                what = (
                    "map of the test images" if name == "map" else f"step {int(name.split('_')[1])}"
                )
                picture = link(what, f"{self._folder.name}/{copy.name}")
                lines.append(
                    fill("{arm}, {what}:\n\n!{picture}", arm=arm.name, what=what, picture=picture)
                )
        return "\n\n".join(lines)

    def _files(self) -> str:
        """Return the table of the result files from which the report was made."""
        rows = []
        for name, results in self._results.items():
            for result in results:
                file = f"{result['file']}.json"
                where = f"{self._from_page(self._driver.results)}/{file}"
                commit = (result["environment"]["commit"] or "")[:9]
                rows.append(
                    [
                        name,
                        str(result["seed"]),
                        link(code(file), where),
                        code(commit),
                        result["environment"]["processor"],
                    ]
                )
        return table(rows, ["arm", "seed", "file", "commit", "machine"], right=True)
