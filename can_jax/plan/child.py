"""The planner in a child process, for programs whose JAX backend is already initialized."""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from can_jax.config.resolve import to_json
from can_jax.utils.errors import UserError
from can_jax.utils.registry import user_modules

RECIPE = """
from pathlib import Path

from can_jax.config import from_json


def get_config():
    return from_json(Path(__file__).with_name("config.json").read_text())
"""


def plan_in_child(
    config: ConfigDict, topology: str, slices: int, mfu: float | None
) -> dict[str, Any]:
    """Run the planner in a child process, and return the plan as in `can-jax plan --json`.

    The call blocks until the child has compiled the train step. The call issues a warning if the
    planner changes the mesh.

    Args:
        config: The configuration of the run to plan.
        topology: The name of the devices, such as ``v5e:16x16``.
        slices: The number of TPU slices. For GPUs, the number of hosts is multiplied by ``slices``.
        mfu: The model FLOPs utilization, above 0 and at most 1, to assume if the step is compiled
            for CPU devices; None for 0.4.

    Raises:
        UserError: The planner failed: for example, the topology is unknown, a setting is invalid,
            or ``mfu`` is given although the compiler of the devices is installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.py"
        recipe.write_text(RECIPE)
        recipe.with_name("config.json").write_text(to_json(config))
        options = [f"--topology={topology}", f"--slices={slices}", "--tries=0"]
        if mfu is not None:
            options.append(f"--mfu={mfu}")
        if modules := user_modules():
            options.append(f"--modules={','.join(modules)}")
        command = [sys.executable, "-m", "can_jax.plan", f"--config={recipe}", *options, "--json"]
        # The program may have found can_jax by a path of its own.
        paths = os.pathsep.join(filter(None, sys.path))
        environment = os.environ | {"PYTHONPATH": paths}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if not done.stdout.strip():  # The planner also prints a plan that does not fit.
        lines = done.stderr.strip().splitlines() or ["error: the planner failed without a message"]
        raise UserError(lines[-1].removeprefix("error: "))
    plan: dict[str, Any] = json.loads(done.stdout)
    if change := plan.get("mesh_change"):
        warnings.warn(change, stacklevel=3)  # attributes the warning to the caller of `plan_run`
    return plan
