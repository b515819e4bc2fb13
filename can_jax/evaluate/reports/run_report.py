"""The HTML page of one run, or of several runs side by side; runs may be in progress."""

import json
import statistics
from typing import Any

from etils import epath

from can_jax.evaluate.page import Html, legend, picture, render
from can_jax.evaluate.reports.run_record import (
    RunRecord,
    changes_of,
    differences,
    environment_of,
    settings_of,
    starts_of,
)
from can_jax.monitoring.glossary import METRICS, Metric
from can_jax.monitoring.timing import INPUT_BOUND

# The sections of charts in order: the title, and the metrics or prefixes of metrics.
SECTIONS = {
    "Losses": ("loss/",),
    "Probes": ("probe/", "test/", "train/"),
    "Contrast and embedding": ("contrastive/", "embedding/"),
    "Noise": ("denoising/",),
    "Optimization": ("learning_rate", "grad_norm", "param_norm", "skipped_steps"),
    "Throughput": ("images_per_second", "mfu", "data_wait", "skipped_images"),
}
OTHERS = "Other metrics"
REFERENCES = {"probe/knn_pixels": "probe/knn", "denoising/linear_bound": "denoising/explained"}
NO_CHARTS = ("examples", "epoch")
FIGURES = 6  # The maximum number of figures of one run, evenly spaced over it.
COLLAPSED_STD, COLLAPSED_RANK = 0.1, 2.0
HEADLINES = {  # By title: a metric, and the reduction of its values over the run.
    "loss": ("loss/total", "last"),
    "kNN (%)": ("probe/knn", "last"),
    "test top-1 (%)": ("test/top1", "last"),
    "images/s": ("images_per_second", "median"),
    "MFU (%)": ("mfu", "percent"),
    "data wait (%)": ("data_wait", "percent"),
}


def headline(record: RunRecord, metric: str, kind: str) -> float | None:
    """Return one value that summarizes a metric over a run, or None if the metric has no values.

    Args:
        record: The run.
        metric: The name of the metric, such as ``images_per_second``.
        kind: ``last``, ``median``, or ``percent``, which is 100 times the median. A median of
            several values excludes the first, which includes the startup of the input pipeline.
    """
    values = [value for _, value in record.series.get(metric, ())]
    if not values:
        return None
    if kind == "last":
        return values[-1]
    median = statistics.median(values[1:] or values)
    return round(100 * median, 1) if kind == "percent" else median


def headlines(record: RunRecord) -> dict[str, Any]:
    """Return the progress and the main metrics of a run, by title."""
    total = record.total
    step = f"{record.last_step:,}" + (f" of {total:,}" if total else "")
    epoch = record.last("epoch")
    facts: dict[str, Any] = {"step": step} | ({"epochs": epoch} if epoch is not None else {})
    for title, (metric, kind) in HEADLINES.items():
        if (value := headline(record, metric, kind)) is not None:
            facts[title] = value
    return facts


def notices(record: RunRecord) -> list[str]:
    """Return warnings about a run, such as skipped updates or a collapsed embedding."""
    lines = []
    wait = headline(record, "data_wait", "median") or 0.0
    if wait > INPUT_BOUND:
        lines.append(
            f"The devices waited for images for {wait:.0%} of the time. `can-jax benchmark input` "
            "measures each stage of the input pipeline."
        )
    if skipped := record.last("skipped_steps"):
        lines.append(
            f"{skipped:.0f} updates were skipped because the loss, a gradient or an updated "
            "value was not finite. A lower optimizer.learning_rate or optimizer.clip_norm may help."
        )
    if images := record.last("skipped_images"):
        lines.append(
            f"{images:.0f} images could not be decoded and were replaced by others. log.txt names "
            "the first undecodable images."
        )
    limits = {"embedding/std": COLLAPSED_STD, "embedding/effective_rank": COLLAPSED_RANK}
    last = {name: value for name in limits if (value := record.last(name)) is not None}
    if any(value < limits[name] for name, value in last.items()):
        values = " and ".join(f"{name} is {value:.2g}" for name, value in last.items())
        lines.append(
            f"The embedding has collapsed: {values}. "
            "A lower learning rate or a longer warm-up may prevent it."
        )
    explained = record.last("denoising/explained")
    if explained is not None and explained < 0:
        lines.append(
            "The predicted noise is worse than a prediction of zero: denoising/explained is "
            f"negative ({explained:.2g}). This is usual with the paper's form of the denoising "
            "branch (noise.target=scaled, model.decoder.noise_output=False)."
        )
    probe = record.series.get("probe/knn", [])
    if len(probe) > 1 and probe[0][0] == 0 and probe[-1][1] <= probe[0][1]:
        lines.append(
            f"The kNN accuracy, {probe[-1][1]:.1f} %, does not exceed that of the untrained "
            f"encoder, {probe[0][1]:.1f} %."
        )
    return lines


def charts_of(records: list[RunRecord]) -> dict[str, list[dict[str, Any]]]:
    """Return a chart and a caption for each metric, by section of the page."""
    from can_jax.evaluate.reports.charts import metric_chart  # importing matplotlib takes 0.7 s

    by_images = len({record.config.get("batch_size") for record in records}) > 1
    restarts = _restarts(records[0]) if len(records) == 1 else []
    sections: dict[str, list[dict[str, Any]]] = {}
    for title, metrics in _sections(records).items():
        for metric in metrics:
            entry = METRICS.get(metric, Metric(""))
            bounds = [name for name, target in REFERENCES.items() if target == metric]
            chart = metric_chart(
                {r.name: _points(r, metric, by_images) for r in records},
                {
                    record.name: value
                    for record in records
                    for bound in bounds
                    if (value := record.last(bound)) is not None
                },
                title=metric,
                xlabel="images" if by_images else "step",
                ylabel=entry.unit,
                log=entry.log,
                restarts=restarts,
            )
            caption = [entry.meaning, entry.reading]
            if any(bound in record.series for record in records for bound in bounds):
                caption += [f"Dashed: {_lower(METRICS[name].meaning)}" for name in bounds]
            sections.setdefault(title, []).append(
                {"chart": chart, "caption": " ".join(filter(None, caption))}
            )
    return sections


def figures_of_page(records: list[RunRecord]) -> dict[str, Html]:
    """Return evenly spaced figures of one run, or the latest figure of each of several runs."""
    if len(records) > 1:
        chosen = [(f"{r.name}, ", r.figures[-1]) for r in records if r.figures]
    else:
        chosen = [("", path) for path in _spread(records[0].figures)]
    titles = [f"{name}step {int(path.stem.removeprefix('step_'))}" for name, path in chosen]
    return {
        title: picture(path.read_bytes(), title)
        for title, (_, path) in zip(titles, chosen, strict=True)
    }


def run_report(records: list[RunRecord]) -> str:
    """Return the HTML page of one or several runs.

    Args:
        records: The runs, with unique names.
    """
    from can_jax.evaluate.reports.charts import colors_of

    several = len(records) > 1
    one = records[0]
    comparison = [{"run": record.name} | headlines(record) for record in records]
    return render(
        "run.html",
        title=f"Runs: {', '.join(record.name for record in records)}" if several
        else f"Run: {one.name}",
        records=records,
        legend=legend(colors_of([record.name for record in records])) if several else "",
        restarted=bool(_restarts(one)) and not several,
        cards={} if several else headlines(one),
        notices={record.name: lines for record in records if (lines := notices(record))},
        comparison=comparison if several else [],
        differences=differences(records) if several else [],
        charts=charts_of(records),
        figures=figures_of_page(records),
        details=[
            {
                "name": record.name,
                "path": str(record.path),
                "settings": settings_of(record),
                "changes": changes_of(record),
                "starts": starts_of(record),
                "environment": environment_of(record),
                "config": [
                    {"key": k, "value": json.dumps(v)} for k, v in sorted(record.config.items())
                ],
                "warnings": record.warnings,
            }
            for record in records
        ],
    )  # fmt: skip


def _sections(records: list[RunRecord]) -> dict[str, list[str]]:
    """Return the names of the logged metrics that have a chart, by section of the page."""
    known = list(METRICS)
    names = {name for record in records for name in record.series}
    names -= {*NO_CHARTS, *(n for n, target in REFERENCES.items() if target in names)}
    ordered = sorted(names, key=lambda n: (known.index(n) if n in known else len(known), n))
    sections: dict[str, list[str]] = {title: [] for title in (*SECTIONS, OTHERS)}
    for name in ordered:
        title = next((t for t, starts in SECTIONS.items() if name.startswith(starts)), OTHERS)
        sections[title].append(name)
    return {title: metrics for title, metrics in sections.items() if metrics}


def _points(record: RunRecord, metric: str, by_images: bool) -> list[tuple[float, float]]:
    batch = record.config.get("batch_size")
    factor = batch if by_images and isinstance(batch, int) else 1
    return [(float(step * factor), value) for step, value in record.series.get(metric, ())]


def _restarts(record: RunRecord) -> list[int]:
    steps = (start.get("step") for start in record.starts)
    return sorted({step for step in steps if isinstance(step, int) and step > 0})


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _spread(paths: list[epath.Path]) -> list[epath.Path]:
    """Return at most `FIGURES` paths: the first, the last, and evenly spaced ones between."""
    if len(paths) <= FIGURES:
        return paths
    return [paths[round(i * (len(paths) - 1) / (FIGURES - 1))] for i in range(FIGURES)]
