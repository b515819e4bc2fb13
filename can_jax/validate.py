"""The checks of a configuration that run before anything is compiled."""

import difflib
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from can_jax.augment.photometric import Photometric
from can_jax.data.source import OPENERS, parts_of_mixture
from can_jax.errors import UserError
from can_jax.model.can import LEVEL_TOKENS, POOLS, SIZES, encoder_size
from can_jax.model.masking import visible_count
from can_jax.model.vit import REMAT_POLICIES

FILE_SOURCES = ("folder", "tfrecord", "webdataset", "tfds")
# Keys of `data` that hold for a whole mixture: its parts share one pipeline.
WHOLE_MIXTURE = (
    "channels", "examples", "exif_orientation", "image_size", "max_pixels", "range", "skip_limit",
    "streaming", "threads", "window",
)  # fmt: skip


def check(condition: Any, message: str) -> None:
    """Raise `UserError` with the message, prefixed by `config.`, unless the condition holds."""
    if not condition:
        raise UserError(f"config.{message}")


def check_one_of(key: str, value: Any, choices: Any) -> None:
    """The value is one of the choices."""
    check(value in choices, f"{key}={value!r}: choose one of {', '.join(map(str, choices))}")


def check_source(data: ConfigDict) -> None:
    """A block that says where images come from."""
    check_one_of("data.source", data.source, OPENERS)
    check(1 <= data.channels <= 8, f"data.channels={data.channels}: between 1 and 8")
    check(
        data.path or data.source in ("shapes", "tfds", "mixture"),
        f"data.path is not set: say where the {data.source} data lies",
    )
    check(
        data.source not in FILE_SOURCES or data.channels in (1, 3, 4),
        f"data.channels={data.channels}: image files are decoded to 1, 3 or 4 channels",
    )
    if data.source == "tfds":
        check(data.name, "data.name is not set: name the TFDS data set, such as imagenet2012")
    if data.streaming:
        check(
            data.source in ("tfrecord", "webdataset"),
            f"data.streaming=True: only tfrecord and webdataset stream, not {data.source}",
        )
        check(data.examples, "data.examples is not set: say about how many are streamed")
        check(data.window >= 1, f"data.window={data.window}: at least 1")
    check(data.max_pixels >= 1, f"data.max_pixels={data.max_pixels}: at least 1")
    check(0 <= data.skip_limit <= 1, f"data.skip_limit={data.skip_limit}: a share, 0 to 1")
    check(data.cache_gb >= 0, f"data.cache_gb={data.cache_gb}: at least 0")
    check(data.threads is None or data.threads >= 1, f"data.threads={data.threads}: at least 1")


def check_data(config: ConfigDict) -> None:
    """Source, sizes and batch."""
    data = config.data
    check_source(data)
    if data.source == "mixture":
        check(data.mixture, "data.mixture is empty: give a dict for each part")
        for key in {key for part in data.mixture for key in part} - {"weight"} - set(data):
            near = difflib.get_close_matches(key, [*data, "weight"], n=1, cutoff=0.0)[0]
            check(False, f"data.mixture: unknown key {key!r}; did you mean {near!r}?")
        for key in sorted({key for part in data.mixture for key in part} & set(WHOLE_MIXTURE)):
            check(False, f"data.mixture: {key!r} holds for all parts; set config.data.{key}")
        for part, weight in parts_of_mixture(data):
            check(weight > 0, f"data.mixture: weight={weight} is not above 0")
            check(part.source != "mixture", "data.mixture: a part cannot be a mixture itself")
            check_source(part)
    check(config.batch_size >= 1, f"batch_size={config.batch_size}: at least 1 image")
    for name in ("skipped_updates_limit", "stuck_after_seconds"):
        check(config[name] >= 0, f"{name}={config[name]}: at least 0, never")
    check(config.log_every_steps >= 1, f"log_every_steps={config.log_every_steps}: at least 1")


def check_model(config: ConfigDict) -> None:
    """Sizes that fit each other."""
    model, (height, width) = config.model, config.data.image_size
    check_one_of("model.size", model.size, SIZES)
    check_one_of("model.remat", model.remat, REMAT_POLICIES)
    double = ("float64",) if jax.config.read("jax_enable_x64") else ()
    check_one_of("model.dtype", model.dtype, ("bfloat16", "float32", *double))
    check(model.patch_size >= 1, f"model.patch_size={model.patch_size}: at least 1 pixel")
    check(
        height % model.patch_size == 0 and width % model.patch_size == 0,
        f"model.patch_size={model.patch_size} does not divide data.image_size={height}x{width}",
    )
    for name, size in (("model", encoder_size(model)), ("model.decoder", model.decoder)):
        check(size.depth >= 1, f"{name}.depth={size.depth}: at least one block")
        check(size.heads >= 1, f"{name}.heads={size.heads}: at least one")
        check(
            size.width % size.heads == 0,
            f"{name}.heads={size.heads} does not divide {name}.width={size.width}",
        )
        check(
            size.width % 4 == 0 and size.width > 0,
            f"{name}.width={size.width}: 2-D positions need a multiple of 4",
        )
    projector = model.projector
    check(projector.layers >= 1, f"model.projector.layers={projector.layers}: at least 1")
    patches = (height // model.patch_size) * (width // model.patch_size)
    ratio = model.mask_ratio
    check(0 <= ratio < 1, f"model.mask_ratio={ratio}: at least 0 and less than 1")
    visible = visible_count(patches, ratio)
    check(visible > 0, f"model.mask_ratio={ratio} hides all {patches} patches")
    check(
        visible < patches or not config.objective.reconstruction.weight,
        f"model.mask_ratio={ratio} hides none of {patches} patches: nothing is left to "
        "reconstruct; raise it or set objective.reconstruction.weight=0",
    )


def check_objectives(config: ConfigDict) -> None:
    """Weights, and what each objective needs of the rest."""
    objective, noise = config.objective, config.noise
    for name, block in objective.items():
        check(
            block.weight >= 0 and math.isfinite(block.weight),
            f"objective.{name}.weight={block.weight}: at least 0",
        )
    check(any(block.weight for block in objective.values()), "objective: all weights are 0")
    check_one_of("objective.contrastive.pool", objective.contrastive.pool, POOLS)
    check_one_of("noise.target", noise.target, ("scaled", "unit"))
    check_one_of("noise.level_tokens", noise.level_tokens, LEVEL_TOKENS)
    check(noise.sigma_max >= 0, f"noise.sigma_max={noise.sigma_max}: at least 0")
    check(
        noise.sigma_max or not objective.denoising.weight,
        "noise.sigma_max=0: there is no noise to predict; set objective.denoising.weight=0",
    )
    if objective.contrastive.weight:
        temperature, views = objective.contrastive.temperature, config.augment.views
        check(temperature > 0, f"objective.contrastive.temperature={temperature}: above 0")
        check(views >= 2, f"augment.views={views}: the contrastive loss compares at least 2")
        block = objective.contrastive.block
        check(block is None or block >= 1, f"objective.contrastive.block={block}: at least 1 key")
        check(config.batch_size >= 2, "batch_size=1: the contrastive loss has no negatives")


def check_accumulation(config: ConfigDict) -> None:
    """Microbatches that divide the batch."""
    settings = config.accumulation
    count = settings.microbatches
    check(count >= 1, f"accumulation.microbatches={count}: at least 1")
    check(
        config.batch_size % count == 0,
        f"accumulation.microbatches={count} does not divide batch_size={config.batch_size}",
    )
    check_one_of("accumulation.negatives", settings.negatives, ("batch", "microbatch"))
    check(
        settings.negatives == "batch"
        or config.batch_size // count >= 2
        or not config.objective.contrastive.weight,
        "accumulation.negatives='microbatch': a microbatch of one image has no negatives",
    )


def check_augment(config: ConfigDict) -> None:
    """Ranges, probabilities, and colour operations on images with colour."""
    augment = config.augment
    check(augment.views >= 1, f"augment.views={augment.views}: at least 1")
    low, high = augment.crop_area
    check(0 < low <= high <= 1, f"augment.crop_area={augment.crop_area}: 0 < low <= high <= 1")
    low, high = augment.crop_aspect
    check(0 < low <= high, f"augment.crop_aspect={augment.crop_aspect}: 0 < low <= high")
    low, high = augment.blur_sigma
    check(0 < low <= high, f"augment.blur_sigma={augment.blur_sigma}: 0 < low <= high")
    for name in ("flip", "jitter", "greyscale", "blur", "solarize"):
        check(0 <= augment[name] <= 1, f"augment.{name}={augment[name]} is no probability")
    for name in ("brightness", "contrast", "saturation", "hue"):
        check(augment[name] >= 0, f"augment.{name}={augment[name]}: at least 0")
    check(augment.hue <= 0.5, f"augment.hue={augment.hue}: at most 0.5, half the colour circle")
    channels = config.data.channels
    check(
        channels == 3 or not Photometric.from_settings(augment.to_dict()).needs_colour,
        f"data.channels={channels}: set augment.saturation=0, augment.hue=0 and "
        "augment.greyscale=0, which are defined for RGB only",
    )
    for name in ("mean", "std"):
        check(
            len(augment[name]) == channels,
            f"augment.{name} has {len(augment[name])} values, data.channels={channels}",
        )
    check(min(augment.std) > 0, f"augment.std={augment.std}: each above 0")


def check_schedule(config: ConfigDict) -> None:
    """Durations that are set and positive."""
    totals = (config.total_steps, config.total_epochs, config.total_examples)
    check(
        any(total is not None for total in totals),
        "total_steps, config.total_epochs and config.total_examples: set one of them",
    )
    for name, value in config.spike.items():
        check(value >= 0, f"spike.{name}={value}: at least 0")
    for name in ("total_steps", "total_epochs", "total_examples"):
        check(config[name] is None or config[name] > 0, f"{name}={config[name]}: above 0")
    for name in ("every_steps", "keep_last"):
        value = config.checkpoint[name]
        check(value >= 1, f"checkpoint.{name}={value}: at least 1")
    for block in ("probe", "figures"):
        every = config[block].every_steps
        check(
            not config.data.streaming or not (every or config[block].get("every_epochs")),
            f"{block}.every_steps={every}: a streamed data set cannot be looked into; 0 is never",
        )
        check(every is None or every >= 0, f"{block}.every_steps={every}: at least 0, never")
    probe = config.probe
    check(0 < probe.held_out < 1, f"probe.held_out={probe.held_out}: a share, between 0 and 1")
    for name in ("bank", "queries", "k"):
        check(probe[name] >= 1, f"probe.{name}={probe[name]}: at least 1")
    check(probe.temperature > 0, f"probe.temperature={probe.temperature}: above 0")
    for pair in config.optimizer.learning_rate_scale:
        check(
            isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str),
            f"optimizer.learning_rate_scale: {pair!r} is no (pattern, factor) pair",
        )
        check(
            isinstance(pair[1], int | float) and pair[1] >= 0,
            f"optimizer.learning_rate_scale: {pair!r}: factors are at least 0",
        )
    check_one_of("optimizer.moment_dtype", config.optimizer.moment_dtype, ("float32", "bfloat16"))
    check(
        config.optimizer.learning_rate > 0,
        f"optimizer.learning_rate={config.optimizer.learning_rate}: above 0",
    )


CHECKS = (
    check_data,
    check_model,
    check_objectives,
    check_accumulation,
    check_augment,
    check_schedule,
)
