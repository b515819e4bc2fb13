"""`python -m can_jax.replay CAPTURE`

Recomputes a failed train step from its dump, on one device of this machine. Prints each loss and
the gradient norm of each part of the network, and marks values that are not finite. CAPTURE is the
folder of the dump, which a run writes when it stops because its updates are not finite.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from rich.table import Table

from can_jax.checkpoint.failed_step import read_batch
from can_jax.checkpoint.run_directory import newest_state, read_encoder
from can_jax.cli.command import Command
from can_jax.distributed.mesh import make_mesh
from can_jax.distributed.sharding_rules import named_leaves
from can_jax.monitoring.console import plain_console
from can_jax.train.step import abstract_state, gradients, stored_step
from can_jax.utils.errors import UserError
from can_jax.utils.progress import phase

COMMAND = Command(__doc__, "CAPTURE")


@COMMAND.runs
def main(capture: str) -> None:
    """Recompute the failed step, and print its losses and gradient norms."""
    folder = epath.Path(capture)
    if not (folder / "capture.json").exists():
        raise UserError(f"{folder} is not a failed-step dump: capture.json not found")
    config = read_encoder(folder)
    facts = json.loads((folder / "capture.json").read_text())
    mesh = make_mesh(ConfigDict({"data": 1, "fsdp": 1, "tensor": 1}), jax.devices()[:1])
    step = stored_step(config)
    with phase("reading the dump"):
        _, state = newest_state(folder, abstract_state(step, mesh), "state")
        batch = read_batch(folder)
    step_index = jnp.int32(facts["step"] - 1)  # The step's random keys derive from the index.
    with jax.set_mesh(mesh), phase("recomputing the step"):
        outputs = jax.jit(
            lambda parameters, statistics, batch, teacher: gradients(
                config, step.network, parameters, statistics, batch, step_index, teacher
            )
        )(state.parameters, state.batch_stats, batch, step.teacher(state))
        jax.block_until_ready(outputs)
    first, last = batch.position[0], batch.position[-1]  # the dump has the images of process 0 only
    console = plain_console(width=100, soft_wrap=True)
    console.print(
        f"step {facts['step']}, {len(batch.position)} images at positions {first} to {last} of the "
        "data order"
    )
    console.print(_table("loss", {k: v for k, v in outputs.metrics.items() if jnp.ndim(v) == 0}))
    console.print(_table("gradient", _norms(outputs.gradients)))


def _norms(tree: Any) -> dict[str, Any]:
    """Return the gradient norm of each part of the network, by the name of the part."""
    squares: dict[str, float] = {}
    for name, leaf in named_leaves(tree).items():
        part = "/".join(name.split("/")[:2])
        squares[part] = squares.get(part, 0.0) + float(jnp.sum(jnp.square(leaf)))
    return {part: np.sqrt(value) for part, value in squares.items()}


def _table(name: str, values: dict[str, Any]) -> Table:
    table = Table(name, "value", "")
    for key, value in values.items():
        table.add_row(key, f"{float(value):.6g}", "" if np.isfinite(value) else "not finite")
    return table
