"""What an evaluation found, as `results.json`."""

import json
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from can_jax.config import to_json
from can_jax.errors import UserError
from can_jax.evaluate.report import report_of
from can_jax.evaluate.subject import Subject
from can_jax.evaluate.task import Findings
from can_jax.files import replace_text
from can_jax.parallel.runtime import commit, version_of


def read_results(workdir: epath.Path) -> dict[str, Any]:
    """What an evaluation wrote.

    Raises:
        UserError: it is none.
    """
    place = workdir / "results.json"
    if not place.exists():
        raise UserError(f"{workdir} holds no results.json")
    return json.loads(place.read_text())


def write_results(
    workdir: epath.Path, findings: Findings, config: ConfigDict, subject: Subject
) -> dict[str, Any]:
    """Write `results.json` and `report.html`; gives what the first holds."""
    data = subject.config.data.to_dict()
    content = {
        "metrics": findings.metrics,
        "examples": findings.examples,
        "warnings": findings.warnings,
        "protocol": json.loads(to_json(config)),
        "chosen": findings.chosen,
        "checkpoint": subject.identity,
        "data": {"source": data["source"], "path": data["path"], "name": data["name"]}
        | {"fingerprints": findings.data},
        "tables": findings.tables,
        "environment": {
            "jax": version_of("jax"),
            "commit": commit(),
            "devices": [device.device_kind for device in jax.devices()],
        },
    }
    if jax.process_index() == 0:
        replace_text(workdir / "results.json", json.dumps(content, indent=2) + "\n")
        replace_text(workdir / "report.html", report_of(content, findings.pictures))
    return content
