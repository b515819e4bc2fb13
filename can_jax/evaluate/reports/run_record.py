"""Functions that read a run directory: metrics, configuration, starts, figures and warnings."""

import functools
import json
import math
import re
from typing import Any, NamedTuple

from etils import epath

from can_jax.checkpoint.run_directory import read_starts
from can_jax.config.resolve import default_config, to_json
from can_jax.monitoring.figures import figures_by_step
from can_jax.monitoring.jsonl import CLOCK, read_metrics
from can_jax.utils.errors import UserError
from can_jax.utils.files import read_json
from can_jax.utils.nested import flatten

WARNING = re.compile(r"(WARNING|ERROR|warning|error)\b")
Series = list[tuple[int, float]]


class RunRecord(NamedTuple):
    """The content of a run directory.

    Attributes:
        name: The display name of the run.
        path: The run directory.
        series: For each metric, its (step, value) pairs with ascending steps.
        config: The values in `config.json`, by dotted key.
        environment: The content of `environment.json`; empty if the file is missing.
        starts: The records of the first start and of each resumption, in chronological order.
        figures: The paths of the reconstruction figures, in the order of their steps.
        warnings: The lines of `log.txt` that contain the word warning or error.
    """

    name: str
    path: epath.Path
    series: dict[str, Series]
    config: dict[str, Any]
    environment: dict[str, Any]
    starts: list[dict[str, Any]]
    figures: list[epath.Path]
    warnings: list[str]

    @property
    def last_step(self) -> int:
        """The last step for which metrics were logged."""
        return max(values[-1][0] for values in self.series.values())

    @property
    def total(self) -> int | None:
        """The length of the run in steps, or None if `environment.json` does not hold it."""
        steps = block(self.environment, "run").get("steps")
        return steps if isinstance(steps, int) else None

    def last(self, metric: str) -> float | None:
        """Return the last value of a metric, or None if the metric was not logged."""
        return self.series[metric][-1][1] if metric in self.series else None


def block(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Return ``content[name]`` if it is a dict, else an empty dict."""
    part = content.get(name)
    return part if isinstance(part, dict) else {}


def read_record(path: epath.Path, name: str) -> RunRecord:
    """Read a run directory, whether the run is in progress, finished or failed.

    Args:
        path: The run directory.
        name: The display name of the run.

    Raises:
        UserError: The directory has no configuration or no metrics.
    """
    if not (path / "config.json").exists():
        raise UserError(f"{path} is not a run directory: config.json is missing")
    series: dict[str, dict[int, float]] = {}
    for line in read_metrics(path):
        for metric, value in line.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if metric not in ("step", *CLOCK) and is_number and math.isfinite(value):
                series.setdefault(metric, {})[line["step"]] = float(value)
    if not series:
        raise UserError(f"{path} has no metrics yet: metrics.jsonl is missing or empty")
    environment = path / "environment.json"
    log = path / "log.txt"
    lines = log.read_bytes().decode(errors="replace").splitlines() if log.exists() else []
    return RunRecord(
        name=name,
        path=path,
        series={metric: sorted(values.items()) for metric, values in series.items()},
        config=flatten(read_json(path / "config.json")),
        environment=read_json(environment) if environment.exists() else {},
        starts=read_starts(path),
        figures=list(figures_by_step(path).values()),
        warnings=[line for line in lines if WARNING.search(line)],
    )


@functools.cache
def defaults() -> dict[str, Any]:
    """Return the default configuration with JSON values, by dotted key."""
    return flatten(json.loads(to_json(default_config())))


def settings_of(record: RunRecord) -> list[dict[str, Any]]:
    """Return the configuration keys whose values differ from the defaults, as table rows."""
    return [
        {"key": key, "value": json.dumps(value), "default": _shown(defaults(), key)}
        for key, value in sorted(record.config.items())
        if key not in defaults() or defaults()[key] != value
    ]


def differences(records: list[RunRecord]) -> list[dict[str, Any]]:
    """Return the configuration keys in which runs differ, as table rows."""
    keys = sorted({key for record in records for key in record.config})
    rows = [
        {"key": key} | {record.name: _shown(record.config, key) for record in records}
        for key in keys
    ]
    return [row for row in rows if len({value for key, value in row.items() if key != "key"}) > 1]


def changes_of(record: RunRecord) -> list[dict[str, Any]]:
    """Return the configuration keys that changed when a run was resumed, as table rows."""
    rows: list[dict[str, Any]] = []
    before: dict[str, Any] | None = None
    for number, start in enumerate(record.starts, 1):
        if not isinstance(start.get("config"), dict):
            continue
        after = flatten(start["config"])
        if before is None:
            before = after
        for key in sorted(before.keys() | after.keys()):
            row = {"key": key, "before": _shown(before, key), "after": _shown(after, key)}
            if row["before"] != row["after"]:
                rows.append({"start": number, "step": start.get("step", "")} | row)
        before = after
    return rows


def starts_of(record: RunRecord) -> list[dict[str, Any]]:
    """Return the first start and the resumptions of a run as table rows."""
    rows = []
    for number, start in enumerate(record.starts, 1):
        facts = block(start, "environment")
        devices = facts.get("devices")
        command = start.get("command")
        rows.append(
            {
                "start": number,
                "time": start.get("time", ""),
                "from step": start.get("step", ""),
                "host": start.get("host", ""),
                "devices": ", ".join(map(str, devices)) if isinstance(devices, list) else "",
                "jax": block(facts, "versions").get("jax", ""),
                "commit": str(facts.get("commit", ""))[:12],
                "command": " ".join(map(str, command)) if isinstance(command, list) else "",
            }
        )
    return rows


def environment_of(record: RunRecord) -> list[dict[str, Any]]:
    """Return the content of `environment.json` as table rows."""
    flat = flatten(record.environment)
    return [
        {"fact": key, "value": value if isinstance(value, str | int) else json.dumps(value)}
        for key, value in flat.items()
    ]


def _shown(values: dict[str, Any], key: str) -> str:
    """Return a value as JSON text, or an empty string if the key is missing."""
    return json.dumps(values[key]) if key in values else ""
