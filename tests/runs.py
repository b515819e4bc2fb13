"""Runs of the main command on a tiny recipe."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parents[1]

RECIPE = """
from can_jax.config import default_config

def get_config():
    config = default_config()
    config.batch_size = 16
    config.total_steps = 6
    config.log_every_steps = 1
    config.data.update(source="shapes", image_size=16, shapes_count=64)
    config.model.update(size="Ti", width=24, depth=1, heads=3, patch_size=4)
    config.model.update(dtype="float32", scan=False)
    config.model.decoder.update(width=16, depth=1, heads=2)
    config.model.projector.update(hidden=32, outputs=16)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
    config.checkpoint.update(every_steps=3, keep_last=9)
    config.probe.update(every_steps=6, bank=40, queries=20)
    config.figures.update(every_steps=6, images=2)
    return config
"""


def command(recipe, workdir, *overrides):
    options = [f"--config={recipe}", f"--workdir={workdir}"]
    options += [f"--config.{override}" for override in overrides]
    return [sys.executable, "-m", "can_jax.main", *options]


def run(recipe, workdir, *overrides):
    return subprocess.run(
        command(recipe, workdir, *overrides), cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def state_at(workdir, step):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(workdir.absolute() / "checkpoints" / str(step) / "state")


def assert_same_state(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def assert_same_run(one, other, step):
    """Two runs ended at a step with the same metrics, but for what is timed, and the same state."""
    timed = ("images_per_second", "mfu", "data_wait")
    found, wanted = (
        [{k: v for k, v in line.items() if k not in timed} for line in metrics(workdir)]
        for workdir in (one, other)
    )
    assert found == wanted
    assert_same_state(state_at(one, step), state_at(other, step))
