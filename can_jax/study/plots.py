"""The plots of a study's report."""

import itertools
import statistics
from typing import Any

import matplotlib
from etils import epath
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from can_jax.study.measures import Measure, Result
from can_jax.utils.files import replacing

COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#9c6b4e", "#9498a0")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "can_jax",  # Equal plots are identical files.
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9ecef",
    "font.size": 9,
}


def save(figure: Figure, path: epath.Path) -> None:
    """Write a figure as SVG without a date, so that its bytes are reproducible."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")


def curves(arms: dict[str, list[Result]], path: epath.Path) -> None:
    """Plot the kNN accuracy of each arm against training images and against training FLOPs.

    A line shows the mean over seeds, and a band shows the minimum and maximum. The lines of up to
    24 arms differ in color or style.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.4))
        by_images, by_flops = figure.subplots(1, 2, sharey=True)
        looks = itertools.cycle(itertools.product(("-", "--", ":"), COLORS))
        for (line, color), (name, results) in zip(looks, arms.items(), strict=False):
            points: dict[float, list[float]] = {}
            for result in results:
                for point in result["curves"]:
                    if "probe/knn" in point:
                        points.setdefault(point["step"], []).append(point["probe/knn"])
            steps = sorted(points)
            if steps[-1] <= 1:  # An untrained encoder has no curve.
                level = statistics.mean(points[steps[0]])
                for axis in (by_images, by_flops):
                    axis.axhline(level, color="#9498a0", ls="--", lw=1)
                by_images.annotate(
                    name, (0.99, level), xycoords=("axes fraction", "data"),
                    ha="right", va="bottom", color="#6c757d",
                )  # fmt: skip
                continue
            batch, flops = results[0]["config"]["batch_size"], results[0]["flops_per_image"]
            style = {"color": color, "lw": 1.6, "ls": line}
            low, high = [min(points[s]) for s in steps], [max(points[s]) for s in steps]
            mean = [statistics.mean(points[s]) for s in steps]
            for axis, unit in ((by_images, batch), (by_flops, batch * flops / 1e12)):
                across = [s * unit for s in steps]
                axis.plot(across, mean, label=name, marker="o", ms=3, **style)
                axis.fill_between(across, low, high, color=color, alpha=0.15, lw=0)
        by_images.set(xlabel="images seen", ylabel="kNN accuracy (%)")
        by_images.xaxis.set_major_formatter(EngFormatter(sep=""))
        by_flops.set(xlabel="TFLOP")
        by_flops.legend(frameon=False, bbox_to_anchor=(1.02, 1), loc="upper left")
        save(figure, path)


def bars(
    arms: dict[str, list[Result]],
    reference: list[Result],
    measure: Measure,
    path: epath.Path,
) -> None:
    """Plot the gain of each arm over the mean of the reference arm, and shade the range of the
    reference arm.

    Args:
        arms: The results of the arms to plot, by name. Arms without the metric are omitted.
        reference: The results of the reference arm.
        measure: The metric to compare.
        path: The path of the SVG file to write.
    """
    base = measure.values(reference)
    mean = statistics.mean(base)
    values = {name: measure.values(results) for name, results in arms.items()}
    gains = {name: statistics.mean(own) - mean for name, own in values.items() if own}
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(7, 0.9 + 0.24 * len(gains)))
        axis = figure.subplots()
        axis.axvspan(min(base) - mean, max(base) - mean, color="#dee2e6", lw=0)
        axis.barh(
            range(len(gains)), list(gains.values()), height=0.6,
            color=[COLORS[4] if gain > 0 else COLORS[2] for gain in gains.values()],
        )  # fmt: skip
        axis.set_yticks(range(len(gains)), list(gains))
        axis.invert_yaxis()
        axis.set_xlabel(
            f"gain in {measure.title} over the reference arm (shaded: range of its seeds)"
        )
        save(figure, path)
