"""Settings of a run that have no effect, because of the values of other settings."""

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from can_jax.objectives import active, head_names, reads

Condition = Callable[[ConfigDict], Any]  # returns a true value if the keys have an effect

ENCODED = ("folder", "tfds", "tfrecord", "webdataset")  # the sources with encoded images
# The built-in sources that read a key of `data`, by key.
OF_SOURCES = {
    "name": ("tfds",),
    "image_key": ("tfrecord", "tfds"),  # with tfds, `can_jax.data.sources.registry` warns
    "label_key": ("tfrecord", "tfds"),
    "shapes_count": ("shapes",),
    "mixture": (),
    "options": (),
    "cache_gb": ENCODED,
    "disk_cache": ENCODED,
    "path": ("arrays", "folder", "tfds", "tfrecord", "webdataset"),
}
# The sources for which `OF_SOURCES` is complete. Sources of users may read any key of `data`, and
# the parts of a mixture inherit all keys.
BUILT_IN = ("arrays", "folder", "shapes", "tfds", "tfrecord", "webdataset")


def _predicts(config: ConfigDict) -> bool:
    return bool(reads(config.objective.to_dict()) & {"prediction", "decoded"})


def _projects(config: ConfigDict) -> bool:
    return bool(head_names(config.objective.to_dict()).keys() - OWN_HEADS)


def _relates_rows(config: ConfigDict) -> bool:
    return any(term.relates_rows for term in active(config.objective.to_dict()).values())


def _denoises(config: ConfigDict) -> bool:
    return bool(config.noise.sigma_max and config.objective.denoising.weight)


# The objectives whose heads do not read `model.projector`. Heads of users may read any key.
OWN_HEADS = {"dense", "latents"}

# A pattern of keys, the condition under which they have an effect, and the reason if it is not met.
RULES: tuple[tuple[str, Condition, str], ...] = (
    (r"data\.(window|shards_at_once|examples)", lambda c: c.data.streaming,
     "config.data.streaming is False"),
    (r"data\.disk_cache_gb", lambda c: c.data.disk_cache, "config.data.disk_cache is not set"),
    (r"augment\.(brightness|contrast|saturation|hue)", lambda c: c.augment.jitter,
     "config.augment.jitter is 0"),
    (r"augment\.blur_sigma", lambda c: c.augment.blur, "config.augment.blur is 0"),
    (r"model\.projector\..*", _projects, "no objective of this run has a projector"),
    (r"model\.decoder\..*", _predicts, "no objective of this run reads the decoder"),
    (r"noise\.(target|linear_bound|embed_level|level_.*)|model\.decoder\.noise_output", _denoises,
     "this run predicts no noise"),
    (r"noise\.level_.*", lambda c: c.noise.embed_level, "config.noise.embed_level is False"),
    (r"optimizer\.ema_warmup", lambda c: c.optimizer.ema_decay, "config.optimizer.ema_decay is 0"),
    (r"accumulation\.negatives", lambda c: c.accumulation.microbatches > 1,
     "config.accumulation.microbatches is 1"),
    (r"accumulation\.negatives", _relates_rows, "no objective of this run compares images"),
    (r"spike\.(deviations|rewinds)", lambda c: c.spike.steps, "config.spike.steps is 0"),
    (r"probe\.(split|held_out|bank|queries|k|temperature)",
     lambda c: c.probe.every_steps or c.probe.every_epochs,
     "neither config.probe.every_steps nor config.probe.every_epochs is set"),
    (r"figures\.images", lambda c: c.figures.every_steps, "config.figures.every_steps is not set"),
)  # fmt: skip


def inactive(config: ConfigDict, given: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each given key that has no effect, and the reason.

    Args:
        config: The resolved configuration.
        given: The dotted config keys that the command line sets.
    """
    for key in sorted(given):
        if (
            reason := _of_source(config, key)
            or _of_objective(config, key)
            or _of_rules(config, key)
        ):
            yield key, reason


def _of_source(config: ConfigDict, key: str) -> str | None:
    """Return the reason why the source of the run does not read a key of `data`, or None."""
    block, _, name = key.partition(".")
    source = config.data.source
    unread = name in OF_SOURCES and source in BUILT_IN and source not in OF_SOURCES[name]
    return f"config.data.source is {source}" if block == "data" and unread else None


def _of_objective(config: ConfigDict, key: str) -> str | None:
    """Return the reason why a key of an objective with weight 0 has no effect, or None."""
    block, *parts = key.split(".")
    if block != "objective" or len(parts) != 2:
        return None
    objective, name = parts
    # The pooled embedding that `pool` selects is also read by other objectives.
    unread = not config.objective[objective].weight and name not in ("weight", "pool")
    return f"config.objective.{objective}.weight is 0" if unread else None


def _of_rules(config: ConfigDict, key: str) -> str | None:
    """Return the reason of the first rule of `RULES` by which a key has no effect, or None."""
    for pattern, applies, reason in RULES:
        if re.fullmatch(pattern, key) and not applies(config):
            return reason
    return None
