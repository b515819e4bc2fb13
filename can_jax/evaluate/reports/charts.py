"""The charts of pages, drawn by matplotlib: accuracy by severity, and points in the plane."""

import contextlib
import io
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from can_jax.evaluate.page import MARKED, Html, inline_svg
from can_jax.utils.errors import printable

COLORS = (
    "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5",
    "#9c6b4e", "#9498a0",
)  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "can_jax",  # equal charts are equal text
    "text.parse_math": False,  # a name may have dollar signs
    "text.color": "#3c4652",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c8ced5",
    "axes.labelcolor": "#3c4652",
    "xtick.color": "#3c4652",
    "ytick.color": "#3c4652",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eef0f2",
    "legend.frameon": False,
}


@contextlib.contextmanager
def chart_style() -> Iterator[None]:
    """Draw charts in the style of the pages, within a ``with`` statement."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # The browser has the font.
        yield


def as_svg(figure: Figure) -> bytes:
    """Return a figure as the content of an SVG file, without a date and on no background."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
    )
    return buffer.getvalue()


def curve_chart(curves: dict[str, dict[int, float]]) -> Html:
    """Draw accuracy against severity, one line for each curve."""
    top = max(value for curve in curves.values() for value in curve.values())
    severities = sorted({severity for curve in curves.values() for severity in curve})
    with chart_style():
        figure = Figure(figsize=(8.2, 2.9))
        axis = figure.subplots()
        lines = [
            axis.plot(list(curve), list(curve.values()), color=color, lw=2, marker="o", ms=5)[0]
            for color, curve in zip(itertools.cycle(COLORS), curves.values(), strict=False)
        ]
        axis.set(ylim=(0, max(10.0, 10 * -(-top // 10))), xlabel="severity", ylabel="top-1 (%)")
        axis.set_xticks(severities, ["clean" if s == 0 else str(s) for s in severities])
        axis.grid(axis="x", visible=False)
        names = [printable(name) for name in curves]
        axis.legend(lines, names, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return inline_svg(as_svg(figure), "accuracy against severity")


def scatter(
    points: Float[np.ndarray, "examples 2"],
    labels: Int[np.ndarray, " examples"],
    classes: Sequence[str],
) -> Html:
    """Draw points in the plane, the first ten classes in colors and the rest in gray.

    Args:
        points: The position of each example.
        labels: The class of each example.
        classes: The names of the classes; empty if they have none.
    """
    names = {
        label: printable(classes[label] if classes else str(label)) for label in np.unique(labels)
    }
    colors = dict(zip(names, COLORS, strict=False))
    with chart_style():
        figure = Figure(figsize=(7.6, 6))
        axis = figure.add_axes((0, 0, 0.79, 1))
        axis.set_axis_off()
        shown = [colors.get(label, "#d0d0d0") for label in labels]
        dots = axis.scatter(points[:, 0], points[:, 1], s=20, lw=0, c=shown)
        dots.set_gid(MARKED)
        handles = [Line2D([], [], color=color, marker="o", ls="") for color in colors.values()]
        axis.legend(
            handles, [names[label] for label in colors],
            loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.1, labelspacing=0.7,
        )  # fmt: skip
        titles = [names[label] for label in labels]
        return inline_svg(as_svg(figure), "map of the embedding", titles)
