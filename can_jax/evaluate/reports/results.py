"""Functions that read and write the `results.json` of an evaluation."""

import json
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from can_jax.config.resolve import to_json
from can_jax.distributed.runtime import commit, version_of
from can_jax.encoders.pretrained import PretrainedEncoder
from can_jax.evaluate.reports.report import report_of
from can_jax.evaluate.task import EvalResults
from can_jax.utils.errors import UserError
from can_jax.utils.files import read_json, replace_text


def read_results(workdir: epath.Path) -> dict[str, Any]:
    """Read `results.json`, and validate the keys that the HTML pages use.

    Raises:
        UserError: The file is missing or malformed.
    """
    path = workdir / "results.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no results.json; use the --workdir of an evaluation")
    content = read_json(path)
    if missing := _lacks(content):
        raise UserError(f"{path} is not a result file: {missing} is missing or malformed")
    return content


def _lacks(content: dict[str, Any]) -> str | None:
    """Return the first required key of `results.json` that is missing or malformed; None if all are
    valid."""
    # Results of older versions lack some of these keys, and pages work without them.
    for name in ("examples", "tables", "chosen", "intervals"):
        content.setdefault(name, {})
    for name in ("metrics", "examples", "protocol", "checkpoint", "data", "tables", "chosen"):
        if not isinstance(content.get(name), dict):
            return name
    content["protocol"].setdefault("features", "")
    texts = {
        "protocol": ("protocol", "features"),
        "checkpoint": ("path", "sha256"),
        "data": ("source",),
    }
    for name, keys in texts.items():
        for key in keys:
            if not isinstance(content[name].get(key), str):
                return f"{name}.{key}"
    if "step" not in content["checkpoint"]:
        return "checkpoint.step"
    if not all(isinstance(value, int | float) for value in content["metrics"].values()):
        return "metrics"
    if not isinstance(content["intervals"], dict) or not all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(value, int | float) for value in pair)
        for pair in content["intervals"].values()
    ):
        return "intervals"
    rows = list(content["tables"].values())
    if not all(isinstance(t, list) and all(isinstance(r, dict) for r in t) for t in rows):
        return "tables"
    fingerprints, warnings = content["data"].get("fingerprints", {}), content.get("warnings", [])
    if not isinstance(fingerprints, dict) or not all(
        isinstance(digest, str) for digest in fingerprints.values()
    ):
        return "data.fingerprints"
    if not isinstance(warnings, list) or not all(isinstance(x, str) for x in warnings):
        return "warnings"
    return None


def warn_if_replaced(workdir: epath.Path, content: dict[str, Any]) -> None:
    """Log a warning if results of another evaluation are about to be overwritten."""
    try:
        old = json.loads((workdir / "results.json").read_text())
        same = all(old[key] == content[key] for key in ("checkpoint", "protocol"))
        protocol, checkpoint = old["protocol"]["protocol"], old["checkpoint"]
        evaluation = f"{protocol} of {checkpoint['path']}, step {checkpoint['step']}"
    except (OSError, ValueError, KeyError, TypeError):
        return  # There are no results, or none that can be identified.
    if not same:
        logging.warning("%s held results of %s; they are overwritten", workdir, evaluation)


def write_results(
    workdir: epath.Path, results: EvalResults, config: ConfigDict, subject: PretrainedEncoder
) -> dict[str, Any]:
    """Write `results.json` and `report.html`, and return the content of `results.json`.

    Only the main process writes the files.
    """
    data = subject.config.data.to_dict()
    content = {
        "metrics": results.metrics,
        "intervals": {name: list(pair) for name, pair in results.intervals.items()},
        "examples": results.examples,
        "warnings": results.warnings,
        "protocol": json.loads(to_json(config)),
        "chosen": results.chosen,
        "checkpoint": subject.identity,
        "data": {"source": data["source"], "path": data["path"], "name": data["name"]}
        | {"fingerprints": results.data},
        "tables": results.tables,
        "environment": {
            "jax": version_of("jax"),
            "commit": commit(),
            "devices": [device.device_kind for device in jax.devices()],
        },
    }
    if jax.process_index() == 0:
        warn_if_replaced(workdir, content)
        replace_text(workdir / "results.json", json.dumps(content, indent=2) + "\n")
        replace_text(workdir / "report.html", report_of(content, results.pictures))
    return content
