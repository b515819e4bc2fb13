"""Runs of the commands: of any as a process or in this one, of training on a tiny recipe."""

import contextlib
import dataclasses
import fcntl
import functools
import importlib
import importlib.util
import io
import json
import logging as python_logging
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from can_jax.distributed import hardware
from can_jax.train import run as running
from can_jax.train import start

ROOT = Path(__file__).parents[2]

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
    config.augment.update(jitter=0.0, grayscale=0.0, blur=0.0)  # compiles in half the time
    config.checkpoint.update(every_steps=3, keep_last=9)
    config.probe.update(every_steps=6, bank=40, queries=20)
    config.figures.update(every_steps=6, images=2)
    return config
"""


def command(recipe, workdir, *overrides):
    options = [f"--config={recipe}", f"--workdir={workdir}"]
    options += [f"--config.{override}" for override in overrides]
    return [sys.executable, "-m", "can_jax.main", *options]


def heeding_signals(command, ignored=()):
    """A command that is started with the default answer to signals.

    Whoever started the tests may ignore some, as ``nohup`` does and a shell for what it runs in the
    background, and children inherit that.
    """
    program = (
        "import os, signal, sys\n"
        "for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):\n"
        f"    ignored = number in {[int(number) for number in ignored]}\n"
        "    signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)\n"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", program, *map(str, command)]


def run(recipe, workdir, *overrides):
    return subprocess.run(
        command(recipe, workdir, *overrides), cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def made_once(factory, name, make):
    """Make a run once a session, for all the processes among which its tests are divided.

    Args:
        factory: pytest's ``tmp_path_factory``.
        name: of the run.
        make: runs a command in a given directory, and returns what `subprocess.run` does.

    Returns:
        The run directory, and what the command printed.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # which the workers share
    workdir, output = root / name, root / f"{name}.txt"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            done = make(workdir)
            assert done.returncode == 0, done.stderr
            output.write_text(done.stdout)
    return workdir, output.read_text()


def run_in_process(recipe, workdir, *overrides, devices=1):
    """As `run`, but in this process, and on as many of its eight devices as wanted."""
    with only_devices(devices):
        return main_in_process(*command(recipe, workdir, *overrides)[2:])


def only_devices(count):
    """Let JAX see so many of its devices."""
    chosen = jax.devices()[:count]
    return patch.object(jax, "devices", lambda: chosen)


@contextlib.contextmanager
def counting_steps(change=lambda number, state, metrics: (state, metrics)):
    """Let runs in this process train with a step that only counts, which saves compiling one.

    This is for tests of what surrounds the steps: the run directory, locks, checkpoints, messages.

    Args:
        change: Called after each step with its number, the state and the metrics; returns the last
            two, changed or not.
    """

    def compiled(_, report):
        report.say("compiled the train step in 0.0s")

        def step(state, batch):
            state = dataclasses.replace(state, step=state.step + 1)
            metrics = {"loss/total": jnp.float32(1.0), "learning_rate": jnp.float32(1.0)}
            metrics |= {"skipped_steps": state.skipped}
            return change(int(state.step), state, metrics)

        return step

    def zeros(_, abstract):
        def place(leaf):
            return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

        return jax.tree.map(place, abstract)

    with (
        patch.object(running, "lower_train_step", lambda *_: None),
        patch.object(running, "compile_timed", compiled),
        patch.object(start, "initialize", zeros),
    ):
        yield


# The peak of a CPU is measured by products of matrices; small ones do for tests.
_quick_peak = functools.partial(hardware.matmul_flops, size=256, repeats=1)


def main_in_process(module, *arguments, cwd=ROOT):
    """Run ``python -m module`` in this process, which saves the 7 to 13 s that a new one takes to
    import. The result is that of `subprocess.run`. What ends or kills a process needs a process."""
    arguments = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.dict(os.environ),
        patch.object(sys, "argv", [module]),
        patch.object(hardware, "matmul_flops", _quick_peak),
        _own_loggers(),
        _unchanged(),
    ):
        code = _entry(module)(arguments)
    return subprocess.CompletedProcess([module, *arguments], code, out.getvalue(), err.getvalue())


def _entry(module):
    spec = importlib.util.find_spec(module)
    name = f"{module}.__main__" if spec.submodule_search_locations else module
    return importlib.import_module(name).main


@contextlib.contextmanager
def _unchanged():
    """Check that a command leaves JAX's configuration as it was."""
    before = dict(jax.config.values)
    yield
    assert dict(jax.config.values) == before


@contextlib.contextmanager
def _own_loggers():
    """Log as the process of a command does, and leave the loggers as they were."""
    loggers = (python_logging.root, logging.get_absl_logger())
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    logging.use_absl_handler()
    try:
        yield
    finally:
        for logger, level, handlers in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers


def contents(folder):
    """The content of every file below a folder, by path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def state_at(workdir, step):
    """Return the arrays of a checkpoint on one device, whichever it was saved on."""
    path = workdir.absolute() / "checkpoints" / str(step) / "state"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            checkpointer.metadata(path).item_metadata.tree,
        )
        return checkpointer.restore(path, like)


def assert_same_state(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def assert_same_run(one, other, step):
    """Two runs ended at a step with the same metrics, but for what is timed, and the same state."""
    timed = ("images_per_second", "mfu", "data_wait", "time", "elapsed_seconds")
    found, wanted = (
        [{k: v for k, v in line.items() if k not in timed} for line in metrics(workdir)]
        for workdir in (one, other)
    )
    assert found == wanted
    assert_same_state(state_at(one, step), state_at(other, step))
