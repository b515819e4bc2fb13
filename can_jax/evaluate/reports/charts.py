"""Matplotlib charts for HTML pages: accuracy by severity, metrics by step, and 2D embeddings."""

import contextlib
import io
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator

from can_jax.evaluate.page import EDGE, GRID, INK, MARKED, Html, inline_svg, legend
from can_jax.utils.errors import printable

COLORS = (
    "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5",
    "#9c6b4e", "#9498a0",
)  # fmt: skip
OTHER = "#d0d0d0"  # The color of classes after the first ten.
PARTS = 250  # The maximum number of points of a line, about one per pixel of its width.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # writes text instead of paths, so that the page sets the font
    "svg.hashsalt": "can_jax",  # gives equal charts equal SVG text
    "text.parse_math": False,  # names may contain dollar signs
    "text.color": INK,
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
}


@contextlib.contextmanager
def chart_style() -> Iterator[None]:
    """Apply the chart style of the pages to matplotlib inside a ``with`` statement."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Browsers draw the glyphs that the font of matplotlib lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def as_svg(figure: Figure, tight: bool = True) -> bytes:
    """Return a figure as SVG, with a transparent background and without a date.

    Args:
        figure: The figure.
        tight: Whether to crop the margins of the figure. Without cropping, figures of equal size
            and layout have axes of equal size.
    """
    box = "tight" if tight else None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches=box, transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def curve_chart(curves: dict[str, dict[int, float]]) -> Html:
    """Plot accuracy against corruption severity, with one line for each named curve.

    The legend is HTML above the chart, because text in the chart shrinks on narrow screens.
    """
    colors = colors_of(list(curves))
    top = max(value for curve in curves.values() for value in curve.values())
    severities = sorted({severity for curve in curves.values() for severity in curve})
    with chart_style():
        figure = Figure(figsize=(5.6, 2.7))
        axis = figure.subplots()
        for name, curve in curves.items():
            axis.plot(list(curve), list(curve.values()), color=colors[name], lw=2, marker="o", ms=5)
        axis.set(ylim=(0, max(10, 10 * math.ceil(top / 10))), xlabel="severity", ylabel="top-1 (%)")
        axis.set_xticks(severities, ["clean" if s == 0 else str(s) for s in severities])
        axis.grid(axis="x", visible=False)
        chart = inline_svg(as_svg(figure), "accuracy against severity")
    return legend({printable(name): color for name, color in colors.items()}) + chart


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """Return the color of each named line; colors repeat after ten names."""
    return dict(zip(names, itertools.cycle(COLORS), strict=False))


def metric_chart(
    runs: dict[str, list[tuple[float, float]]],
    references: dict[str, float],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    restarts: Sequence[int] = (),
) -> Html:
    """Plot a metric over training, with one line for each run.

    A run with more than `PARTS` points is divided into `PARTS` groups of points. The line of such a
    run shows the mean of each group, and a band shows the minimum and maximum.

    Args:
        runs: The (x, value) points of each run, with ascending x. A run without points has no line.
        references: The reference value of each run, drawn as a dashed horizontal line. A run
            without a reference value has no dashed line.
        title: The title of the chart, which is the name of the metric.
        xlabel, ylabel: The labels of the horizontal and the vertical axis.
        log: Whether to use a logarithmic vertical axis; ignored unless all values are above 0.
        restarts: The steps at which a run was resumed, marked by dotted vertical lines.
    """
    colors = colors_of(list(runs))
    with chart_style():
        figure = Figure(figsize=(4.4, 2.3))
        axis = figure.add_axes((0.16, 0.2, 0.8, 0.66))
        for name, points in runs.items():
            if not points:
                continue
            x, low, mean, high = _parts(points)
            marker = "o" if len(points) < 20 else ""
            axis.plot(x, mean, color=colors[name], lw=1.6, marker=marker, ms=3.5)
            if len(points) > len(x):
                axis.fill_between(x, low, high, color=colors[name], alpha=0.25, lw=0)
        for name, value in references.items():
            axis.axhline(value, color=colors[name], lw=1.2, ls="--")
        for step in restarts:
            axis.axvline(step, color=STYLE["axes.edgecolor"], lw=1.2, ls=":")
        values = [value for points in runs.values() for _, value in points]
        if log and min(values) > 0:
            axis.set_yscale("log")
            # The default labels are formulas, which `text.parse_math=False` shows as source text.
            axis.yaxis.set_major_formatter(_PlainLogFormatter())
            axis.yaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(1, 0.4)))
        elif max(values) == min(values):
            low, high = sorted((0.0, 2 * values[0] or 1.0))
            axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        axis.set_title(printable(title), loc="left", fontsize=10, fontweight="bold")
        axis.set(xlabel=xlabel, ylabel=ylabel)
        positions = [x for points in runs.values() for x, _ in points]
        if max(positions) == min(positions):
            axis.set_xlim(min(positions) - 1, max(positions) + 1)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        return inline_svg(as_svg(figure, tight=False), f"{title} against {xlabel}")


class _PlainLogFormatter(LogFormatter):
    """A formatter of logarithmic axes that writes 0.6 where `LogFormatter` writes 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _parts(
    points: Sequence[tuple[float, float]],
) -> tuple[Any, Any, Any, Any]:
    """Split a curve into up to `PARTS` sections; return four statistics of each section.

    The statistics are the mean of x, and the minimum, mean and maximum of the values.
    """
    pieces = np.array_split(np.asarray(points, np.float64), min(PARTS, len(points)))
    statistics = [
        (np.mean(x), np.min(y), np.mean(y), np.max(y)) for x, y in (piece.T for piece in pieces)
    ]
    x, low, mean, high = zip(*statistics, strict=True)
    return x, low, mean, high


def scatter(
    points: Float[np.ndarray, "examples 2"],
    labels: Int[np.ndarray, " examples"],
    classes: Sequence[str],
) -> Html:
    """Plot examples in 2D.

    Examples with the ten smallest labels have colors, and all other examples are gray. The legend
    is HTML above the chart, because text in the chart shrinks on narrow screens.

    Args:
        points: The 2D coordinates of each example in the chart.
        labels: The class index of each example; -1 without a label.
        classes: The name of each class by class index; empty if unknown.
    """
    names = {
        label: printable(classes[label] if classes and label >= 0 else str(label))
        for label in np.unique(labels)
    }
    if -1 in names:
        names[-1] = "no label"
    colors = dict(zip(names, COLORS, strict=False))
    with chart_style():
        figure = Figure(figsize=(6, 6))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        shown = [colors.get(label, OTHER) for label in labels]
        dots = axis.scatter(points[:, 0], points[:, 1], s=20, lw=0, c=shown)
        dots.set_gid(MARKED)
        titles = [names[label] for label in labels]
        chart = inline_svg(as_svg(figure), "map of the embedding", titles)
    entries = {names[label]: color for label, color in colors.items()}
    if len(names) > len(colors):
        entries[f"{len(names) - len(colors)} other classes"] = OTHER
    return legend(entries) + chart
