"""Checks of a configuration that involve several keys.

The values that a single key allows are declared in `can_jax.config.defaults`.
"""

import math
from typing import Any

import jax
from ml_collections import ConfigDict

from can_jax.augment.photometric import Photometric
from can_jax.config.defaults import DATA, OPTIMIZER
from can_jax.config.durations import TOTAL, WARMUP, value_of
from can_jax.data.sources.registry import SOURCES, parts_of_mixture
from can_jax.models.backbones import BACKBONES, decoder_size, encoder_size
from can_jax.models.can import grid_of
from can_jax.models.masking import visible_count
from can_jax.models.ops import CUDNN_HEAD_WIDTH, fits_cudnn
from can_jax.models.variant import variant_of
from can_jax.objectives import active
from can_jax.optimizers.optimizer import peak_learning_rate
from can_jax.optimizers.schedules import find_schedule, unknown_schedule
from can_jax.optimizers.transforms import find_optimizer, unknown_optimizer, unused_settings
from can_jax.utils.errors import UserError
from can_jax.utils.nearest import nearest
from can_jax.utils.settings import Number, refuse

# Keys of `data` that apply to a whole mixture, because its parts share one pipeline.
WHOLE_MIXTURE = (
    "channels", "examples", "exif_orientation", "image_size", "max_pixels", "range", "skip_limit",
    "shards_at_once", "streaming", "threads", "window",
)  # fmt: skip
WARMUP_SHARE = WARMUP[-1]
# The maximum learning rate of AdamW, which changes a weight by about the learning rate per step.
HIGHEST_RATE = 1.0
PART_WEIGHT = Number(above=0, high=1e9)


def check(condition: Any, message: str) -> None:
    """Raise `UserError` with the message, prefixed by `config.`, unless the condition is true."""
    if not condition:
        raise UserError(f"config.{message}")


def check_source(data: ConfigDict) -> None:
    """Check that the settings of a `data` block are complete and valid for its source.

    Raises:
        UserError: A required key is not set, or a setting is invalid for this source.
    """
    kind = SOURCES.get(data.source)
    for key, remedy in kind.needs.items():
        check(data[key], f"data.{key} is not set: {remedy}")
    for name, value in data.options:
        if name not in kind.options:
            near = nearest(name, list(kind.options))
            has = f"has {', '.join(kind.options)}" if kind.options else "has none"
            hint = f"did you mean {near!r}?" if near else f"the source {data.source} {has}"
            raise UserError(f"config.data.options: unknown option {name!r}; {hint}")
        refuse(f"data.options.{name}", value, kind.options[name])
    check(
        not kind.holds_files or data.channels in (1, 3, 4),
        f"data.channels={data.channels}: image files are decoded to 1, 3 or 4 channels",
    )
    check(
        not data.labels or data.source in ("folder", "mixture"),
        f"data.labels: only data.source=folder takes a list of labels, not {data.source}",
    )
    if data.streaming:
        streamed = " and ".join(name for name, kind in SOURCES.items() if kind.shards)
        check(
            kind.shards, f"data.streaming=True: only {streamed} can be streamed, not {data.source}"
        )
        check(
            data.examples,
            "data.examples is not set: give the approximate number of streamed images",
        )


def check_data(config: ConfigDict) -> None:
    """Check the data source and, if it is a mixture, each of its parts."""
    data = config.data
    check_source(data)
    if data.source != "mixture":
        return
    check(data.mixture, "data.mixture is empty: give a dict for each part")
    for index, part in enumerate(data.mixture):
        for key, value in part.items():
            check_part(f"data.mixture[{index}]: {key}", key, value)
    for part, _ in parts_of_mixture(data):
        check(part.source != "mixture", "data.mixture: a part cannot be a mixture itself")
        check_source(part)


def check_part(name: str, key: Any, value: Any) -> None:
    """Check the value of one key in a part of a mixture.

    Args:
        name: The name of the key in messages, such as ``data.mixture[0]: path``.
        key: The key as the user wrote it; may be an unknown key.
        value: The value to check.
    """
    if key == "weight":
        refuse(name, value, PART_WEIGHT)
        return
    if key not in DATA:
        near = nearest(str(key), [*DATA, "weight"])
        hint = f"; did you mean {near!r}?" if near else ""
        raise UserError(f"config.data.mixture: unknown key {key!r}{hint}")
    check(
        key not in WHOLE_MIXTURE,
        f"data.mixture: a part cannot set {key!r}, which all parts share; set config.data.{key}",
    )
    refuse(name, value, DATA[key])


def check_encoder(config: ConfigDict) -> None:
    """Check that the encoder's settings are compatible, and that ``augment.mean`` and
    ``augment.std`` have one value per channel."""
    model, (height, width) = config.model, config.data.image_size
    for name in ("dtype", "residual_dtype"):
        check(
            model[name] != "float64" or jax.config.read("jax_enable_x64"),
            f"model.{name}='float64' needs JAX_ENABLE_X64=1",
        )
    check(
        model.attention != "cudnn" or model.dtype == "bfloat16",
        f"model.attention='cudnn' needs model.dtype=bfloat16, not {model.dtype}",
    )
    check(
        height % model.patch_size == 0 and width % model.patch_size == 0,
        f"model.patch_size={model.patch_size} does not divide data.image_size={height}x{width}",
    )
    check(
        model.patch_embed in ("auto", "linear") or model.backbone == "vit",
        f"model.patch_embed={model.patch_embed!r}: the backbone {model.backbone} supports only "
        "'linear'",
    )
    BACKBONES.get(model.backbone).check(config)
    for name, size in (("model", encoder_size(model)), ("model.decoder", decoder_size(model))):
        check(
            model.attention != "cudnn" or fits_cudnn(size.width // size.heads),
            f"model.attention='cudnn' needs a head width of at most {CUDNN_HEAD_WIDTH} that is "
            f"divisible by 8, not {name}.width / {name}.heads = {size.width // size.heads}",
        )
    for name in ("mean", "std"):
        check(
            len(config.augment[name]) == config.data.channels,
            f"augment.{name} has {len(config.augment[name])} values, but "
            f"data.channels={config.data.channels}: give a value for each channel",
        )


def check_variant(config: ConfigDict) -> None:
    """Check that the encoder has no option that only imported encoders support."""
    if config.model.backbone == "vit":
        check(
            variant_of(config.model).norm == "tokens",
            "model.backbone_options: remove norm='pooled', which only imported encoders "
            "support; in pretraining, the decoder and the losses read normalized tokens",
        )


def check_masking(config: ConfigDict) -> None:
    """Check that the decoder can be built, and that masking leaves visible patches."""
    model = config.model
    decoder_size(model).check("model.decoder")
    patches = math.prod(grid_of(config))
    visible = visible_count(patches, model.mask_ratio)
    check(visible > 0, f"model.mask_ratio={model.mask_ratio} masks all {patches} patches; lower it")


def check_objectives(config: ConfigDict) -> None:
    """Check that at least one objective has a nonzero weight, and run the checks of all such
    objectives."""
    objectives = active(config.objective.to_dict())
    check(objectives, "objective: all weights are 0; set the weight of at least one objective")
    for name, objective in objectives.items():
        check(
            "teacher" not in objective.reads or config.optimizer.ema_decay,
            f"optimizer.ema_decay=0 disables the moving average of the encoder, which computes the "
            f"targets of objective.{name}; set a decay rate, such as 0.999",
        )
        objective.check(config)


def check_batch(config: ConfigDict) -> None:
    """Check that the microbatches divide the batch, and that each active objective gets enough
    images and views."""
    settings = config.accumulation
    count = settings.microbatches
    check(
        config.batch_size % count == 0,
        f"accumulation.microbatches={count} does not divide batch_size={config.batch_size}",
    )
    views = config.augment.views
    for name, objective in active(config.objective.to_dict()).items():
        fewest = objective.min_views
        check(
            views >= fewest, f"augment.views={views}: objective.{name} requires at least {fewest}"
        )
        # Only objectives that relate rows receive the embeddings of all microbatches together.
        whole = objective.relates_rows and settings.negatives == "batch"
        together = config.batch_size if whole else config.batch_size // count
        where = "" if together == config.batch_size else f", and a microbatch has {together}"
        fewest = objective.min_images
        check(
            together >= fewest,
            f"batch_size={config.batch_size}: objective.{name} requires at least {fewest} images"
            + where,
        )


def check_augment(config: ConfigDict) -> None:
    """Check that images have three channels if color augmentations are enabled."""
    augment = config.augment
    channels = config.data.channels
    check(
        channels == 3 or not Photometric.from_settings(augment.to_dict()).needs_color,
        f"data.channels={channels}: set augment.saturation=0, augment.hue=0 and "
        "augment.grayscale=0, which are defined for RGB only",
    )


def check_optimizer(config: ConfigDict) -> None:
    """Check the optimizer, its settings and the schedule.

    Learning rates and weight decays that are too large for stable training are rejected.
    """
    settings = config.optimizer
    scale = max([1.0, *(factor for _, factor in settings.learning_rate_scale)])
    if find_optimizer(settings.name) is None:
        raise unknown_optimizer(settings.name)
    if find_schedule(config.schedule.name) is None:
        raise unknown_schedule(config.schedule.name)
    for key in unused_settings(settings):
        default = OPTIMIZER[key].default
        check(
            settings[key] == default,
            f"optimizer.{key}={settings[key]}: the optimizer {settings.name} has no such setting; "
            f"leave it at {default}",
        )
    check_rates("optimizer", settings, peak_learning_rate(config) * scale)


def check_rates(name: str, settings: ConfigDict, peak: float) -> None:
    """Check the learning rate, the weight decay, and the decay rates of AdamW's moments.

    If beta2 exceeds the square of beta1, the Cauchy-Schwarz inequality bounds the ratio of Adam's
    moments. If beta2 is below the square of beta1, small gradients after a large one can cause
    arbitrarily large steps.

    Args:
        name: The name of the optimizer's config block in messages, such as ``optimizer``.
        settings: The config block of the optimizer.
        peak: The largest learning rate of any parameter.
    """
    scales = "batch_size"
    if "learning_rate_scale" in settings:
        scales = "batch_size and learning_rate_scale"
    if settings.get("name", "adamw") == "adamw":
        check(
            peak <= HIGHEST_RATE,
            f"{name}.learning_rate={settings.learning_rate:g} is a peak learning rate of {peak:g} "
            f"with this {scales}: the maximum is {HIGHEST_RATE:g}",
        )
        beta1, beta2 = settings.get("beta1", 0.9), settings.beta2
        check(
            not beta1 or beta2 > beta1**2,
            f"{name}.beta2={beta2:g} with beta1={beta1:g}: Adam's step size would be "
            f"unbounded; give a beta2 above the square of beta1, {beta1**2:.4g}",
        )
    decay = settings.weight_decay * peak
    check(
        decay < 1,
        f"{name}.weight_decay={settings.weight_decay:g}: with a peak learning rate of "
        f"{peak:g} a step would subtract {decay:g} times each weight; lower the decay or the rate",
    )


def check_schedule(config: ConfigDict) -> None:
    """Check that the run has a length, and that streamed data is used without probes and figures.

    The warm-up of a run with ``total_minutes`` must be given as a fraction of the run.
    """
    check(
        any(value_of(config, key) is not None for key in TOTAL),
        "total_steps, config.total_epochs, config.total_examples, config.total_minutes: none is "
        "set; set one of them",
    )
    if config.total_minutes is not None:
        for key in WARMUP:
            check(
                key == WARMUP_SHARE or not value_of(config, key),
                f"{key}={value_of(config, key)}: the number of steps of a run with total_minutes "
                f"is not known in advance; set config.{WARMUP_SHARE} instead",
            )
    for block in ("probe", "figures"):
        for unit in ("every_steps", "every_epochs"):
            every = config[block].get(unit)
            check(
                not config.data.streaming or not every,
                f"{block}.{unit}={every}: a streamed data set has no random access, which probes "
                "and figures require; set this interval to 0",
            )


CHECKS = (
    check_data,
    check_augment,
    check_encoder,
    check_variant,
    check_masking,
    check_objectives,
    check_batch,
    check_optimizer,
    check_schedule,
)
