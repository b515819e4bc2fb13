"""Draws settings at random from the table of keys, and shows that what is accepted trains.

    python -m tests.torture.settings --draws=1000 --seed=0 --out=settings.jsonl

A draw changes a few keys of a tiny recipe to values that the table allows, the ends of ranges among
them, and trains for five steps. Its result is `refused`, by a message that names a key, `trained`,
or what went wrong: an exception, values that are not finite, or parameters that do not change. Each
result is a line of the file, written at once.
"""

import argparse
import collections
import contextlib
import functools
import json
import math
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from can_jax.config import default_config
from can_jax.config.defaults import RECIPE
from can_jax.config.durations import DURATIONS, keep_overrides
from can_jax.data.evaluation.examples import EvaluationSet
from can_jax.data.pipeline.loader import open_loader
from can_jax.train.figures import draw, make_panel
from can_jax.train.knn_probe import KnnProbe
from can_jax.train.pretrain import Pretraining, prepare
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Choice, Key, Number, Several, Switch, Whole, flat_keys

STEPS = 5
MOST_KEYS = 12  # that a draw changes
# The largest values with which a draw takes seconds. Larger ones are not drawn.
AFFORDABLE = {
    "batch_size": 12, "total_steps": 6, "total_epochs": 3, "total_examples": 40,
    "data.channels": 8, "data.shapes_count": 64, "data.threads": 2,
    "augment.views": 3, "model.width": 24, "model.depth": 2, "model.heads": 4,
    "model.patch_size": 16, "model.decoder.width": 16, "model.decoder.depth": 2,
    "model.decoder.heads": 4, "model.projector.layers": 3, "model.projector.hidden": 32,
    "model.projector.outputs": 16, "accumulation.microbatches": 8, "optimizer.warmup_steps": 8,
    "optimizer.warmup_epochs": 1, "optimizer.warmup_examples": 50, "checkpoint.keep_last": 4,
    "probe.every_steps": 5, "probe.every_epochs": 2, "figures.images": 8,
}  # fmt: skip
AT_LEAST = {"stuck_after_seconds": 600}  # a slow machine is not stuck
OWN_VALUES: dict[str, tuple[Any, ...]] = {
    "data.image_size": (8, 16, (8, 16), (24, 8), 12),
    "data.split": ("train", "test"),
    "probe.split": ("test", "train"),
    "optimizer.freeze": ((), ("encoder/",), ("decoder", "projector"), ("bias$",), (".",), ("(",)),
    "optimizer.learning_rate_scale": (
        (), (("encoder/", 0.1),), (("encoder/", 0.0),), ((".", 0.0),), (("bias", 1e3),),
    ),
    # The rates at which other optimizers are stable are not known.
    "optimizer.name": ("adamw", "adamx"),
    "optimizer.options": ((), (("eps_root", 1e-9),), (("nesterov", 1),)),
    "schedule.name": ("cosine", "linear", "constant", "polynomial_schedule"),
    "schedule.options": ((), (("alpha", 0.1),), (("end_value", 1e-4),)),
    "model.scan": ("auto", True, False),
    "mesh.shard_state": ("auto", True, False),
    "model.backbone_options": ((), (("width", 8),)),
    "data.options": ((), (("delimiter", ";"),)),
}  # fmt: skip
# Keys of data that is not there, of the devices, and of what is never set to None in a tiny run.
LEFT_OUT = (
    "data.source", "init_from", "mesh.data", "mesh.fsdp", "mesh.tensor", "model.size", "trackers",
)  # fmt: skip
SIZES = ("model.width", "model.depth", "model.heads")
COLORS = ("augment.saturation", "augment.hue", "augment.grayscale")


def tiny() -> ConfigDict:
    """Return a recipe that compiles and trains in seconds."""
    config = default_config()
    config.batch_size, config.total_steps, config.log_every_steps = 4, STEPS, 1
    config.data.update(source="shapes", image_size=16, shapes_count=32)
    config.augment.update(jitter=0.0, grayscale=0.0, blur=0.0)
    config.model.update(width=16, depth=1, heads=2, patch_size=8, dtype="float32", scan=False)
    config.model.decoder.update(width=16, depth=1, heads=2)
    config.model.projector.update(layers=2, hidden=16, outputs=8)
    config.objective.contrastive.weight = 1.0
    config.optimizer.learning_rate = 1e-2
    config.probe.update(bank=24, queries=12, k=3)
    return config


def drawn(name: str, key: Key, rng: random.Random) -> Any:
    """Return a value that the table allows for a key, an end of its range once in three draws.

    Raises:
        LookupError: No value of this key can be drawn.
    """
    if name in OWN_VALUES:
        return rng.choice(OWN_VALUES[name])
    if key.may_be_none and name not in SIZES and rng.random() < 0.2:
        return None
    return of_kind(key.kind, key.default, AT_LEAST.get(name), AFFORDABLE.get(name), rng)


def of_kind(kind: Any, near: Any, low: Any, high: Any, rng: random.Random) -> Any:
    """Return a value of a kind, within bounds that may be narrower."""
    if isinstance(kind, Switch):
        return rng.random() < 0.5
    if isinstance(kind, Choice):
        return rng.choice(tuple(kind.choices))
    if isinstance(kind, Several) and isinstance(kind.of, Number) and near:
        values = [of_kind(kind.of, x, None, None, rng) for x in near]
        return tuple(sorted(values) if kind.ascending else values)
    if not isinstance(kind, Number):
        raise LookupError(kind)
    whole = isinstance(kind, Whole)
    least = max(kind.low, kind.above, -math.inf if low is None else low)
    most = min(kind.high, kind.below, math.inf if high is None else high)
    if whole:
        value = edge_or_between(int(least), int(most), rng)
        return round(value / kind.multiple) * kind.multiple if kind.multiple > 1 else value
    if kind.also and rng.random() < 0.15:
        return float(rng.choice(kind.also))
    least = math.nextafter(least, math.inf) if least == kind.above else least
    most = math.nextafter(most, -math.inf) if most == kind.below else most
    return float(edge_or_between(float(least), float(most), rng))


def edge_or_between(least: Any, most: Any, rng: random.Random) -> Any:
    """Return an end of a range, or a value that is spread evenly, or evenly in its logarithm."""
    if rng.random() < 1 / 3:
        return rng.choice((least, most))
    if isinstance(least, int):
        return rng.randint(least, most) if most < 1000 else int(spread(max(least, 1), most, rng))
    if least < 0 or rng.random() < 0.5:
        return rng.uniform(least, most)
    return spread(max(least, most * 1e-12), most, rng)


def spread(least: float, most: float, rng: random.Random) -> float:
    """Return a number with an evenly distributed logarithm."""
    return min(most, math.exp(rng.uniform(math.log(least), math.log(most))))


def drawn_changes(rng: random.Random, count: int) -> dict[str, Any]:
    """Return values for keys drawn at random, and for those that have to follow them."""
    keys = {name: key for name, key in flat_keys(RECIPE) if name not in LEFT_OUT}
    changes: dict[str, Any] = {}
    while len(changes) < count:
        name = rng.choice(list(keys))
        with contextlib.suppress(LookupError):
            changes[name] = drawn(name, keys[name], rng)
    channels = changes.get("data.channels", 3)
    if channels != 3 and rng.random() < 0.9:
        changes |= {f"augment.{name}": (0.5,) * channels for name in ("mean", "std")}
        changes |= dict.fromkeys(COLORS, 0.0)
    for names in DURATIONS:  # one unit of each
        units = [name for name in names if changes.get(name) is not None]
        for name in units[1:]:
            del changes[name]
    return changes


def applied(changes: dict[str, Any]) -> ConfigDict:
    """Return the tiny recipe with the changes, as the command line makes them."""
    config = tiny()
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    keep_overrides(config, changes)
    return config


def outcome(config: ConfigDict) -> str:
    """Return `trained`, `refused: MESSAGE`, or what went wrong."""
    with tempfile.TemporaryDirectory() as place:
        try:
            training = prepare(config, epath.Path(place))
        except UserError as error:
            message = str(error)
            named = "config." in message or message.startswith("mesh.")
            return f"refused: {message}" if named and "\n" not in message else f"unclear: {message}"
        except Exception as error:
            return f"crashed in its checks: {type(error).__name__}: {error}"
        try:
            return trained(training)
        except UserError as error:  # of a probe without classes, before the first step
            return f"refused: {error}" if "config." in str(error) else f"unclear: {error}"
        except Exception as error:
            return f"crashed: {type(error).__name__}: {error}"


def trained(training: Pretraining) -> str:
    """Train for a few steps, draw a figure and probe if that is set, and return what came of it."""
    step, mesh, times = training.step, training.mesh, training.times
    steps = min(STEPS, times.total)
    probe = KnnProbe(training.config, step, training.source, mesh) if times.probe_every else None
    loader = open_loader(training.config, training.source, mesh, 0, steps)
    with jax.set_mesh(mesh):
        state = jax.jit(step.fresh)()
        first = jax.device_get(state.parameters)
        train = jax.jit(step.train)
        for _ in range(steps):
            state, metrics = train(state, next(loader))
            wrong = [name for name, x in metrics.items() if not np.isfinite(x).all()]
            if wrong or state.skipped:
                return f"not finite: {', '.join(wrong)}, {state.skipped} updates were left out"
        if times.figures_every:
            count = training.config.figures.images
            examples = EvaluationSet(training.config, training.source, count, labeled=False)
            panel = jax.jit(functools.partial(make_panel, step))
            draw(jax.device_get(panel(state, examples.images())), "a draw")
    if probe:
        assert 0 <= probe(state)["probe/knn"] <= 100
    leaves = jax.tree.leaves((state.parameters, state.batch_stats))
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        return "not finite: parameters"
    same = jax.tree.map(np.array_equal, first, jax.device_get(state.parameters))
    return "did nothing: no parameter changed" if all(jax.tree.leaves(same)) else "trained"


def draw_many(draws: int, seed: int, write: Any) -> collections.Counter[str]:
    """Make draws until so many were trained, and return how often each kind of result came.

    Args:
        draws: How many have to pass the checks.
        seed: Of the draws.
        write: Called with the changes, the result and the seconds of each draw.
    """
    rng, counts = random.Random(seed), collections.Counter[str]()
    while sum(counts.values()) - counts["refused"] < draws:
        changes = drawn_changes(rng, rng.randint(1, MOST_KEYS))
        began = time.perf_counter()
        result = outcome(applied(changes))
        counts[result.split(":")[0]] += 1
        write(changes, result, round(time.perf_counter() - began, 1))
    return counts


def main() -> None:
    """Make the draws, and print those that found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("settings.jsonl"))
    options = parser.parse_args()
    with options.out.open("a") as file:

        def write(changes: dict[str, Any], result: str, seconds: float) -> None:
            line = {"result": result, "changes": changes, "seconds": seconds}
            file.write(json.dumps(line) + "\n")
            file.flush()
            if not result.startswith(("refused", "trained")):
                print(result, changes, flush=True)

        counts = draw_many(options.draws, options.seed, write)
    print(dict(counts))
    sys.exit(bool(set(counts) - {"refused", "trained"}))


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    logging.set_verbosity(logging.ERROR)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    main()
