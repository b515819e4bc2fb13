"""Every key a recipe may set, its default, and the checks that run before anything is compiled."""

import difflib
import json
import math
import runpy
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from can_jax.augment.photometric import Photometric
from can_jax.errors import UserError
from can_jax.model.can import POOLS, SIZES, encoder_size
from can_jax.model.masking import visible_count
from can_jax.model.vit import REMAT_POLICIES

DATA_SOURCES = ("shapes", "arrays", "folder", "tfds")


def default_config() -> ConfigDict:
    """CAN as in the paper, ViT-B/16 at 224 px; a recipe changes what it needs to.

    Lengths of time may be given in steps, epochs or examples: `total_steps` | `total_epochs` |
    `total_examples`, and likewise `warmup_*` and `every_*`. Steps win over epochs, epochs over
    examples.
    """
    return ConfigDict(
        {
            "seed": 0,
            "batch_size": 4096,  # images of the global batch, each of them seen in every view
            "total_steps": placeholder(int),
            "total_epochs": placeholder(float),
            "total_examples": placeholder(int),
            "log_every_steps": 50,
            "data": {
                "source": "folder",  # shapes | arrays | folder | tfds
                "path": placeholder(str),
                "name": placeholder(str),  # of the TFDS data set
                "split": "train",
                "image_size": placeholder(object),  # pixels: an int, or (height, width)
                "channels": 3,
                "shapes_count": 8192,  # images that the source `shapes` draws for training
                "threads": placeholder(int),  # of the input pipeline; one a core by default
            },
            "augment": {
                "views": 2,
                "crop_area": (0.2, 1.0),
                "crop_aspect": (3 / 4, 4 / 3),
                "flip": 0.5,
                "jitter": 0.8,
                "brightness": 0.4,
                "contrast": 0.4,
                "saturation": 0.4,
                "hue": 0.1,
                "greyscale": 0.2,
                "blur": 0.5,
                "blur_sigma": (0.1, 2.0),
                "solarize": 0.0,
                "mean": (0.485, 0.456, 0.406),
                "std": (0.229, 0.224, 0.225),
            },
            "model": {
                "size": "B",  # Ti | S | B | L | H
                "width": placeholder(int),  # these three replace the size's own
                "depth": placeholder(int),
                "heads": placeholder(int),
                "patch_size": 16,
                "mask_ratio": 0.5,
                "decoder": {"width": 512, "depth": 8, "heads": 16},
                "projector": {"layers": 3, "hidden": 4096, "outputs": 128, "batch_norm": True},
                "dtype": "bfloat16",  # of the computation; parameters and losses are float32
                "scan": True,  # compile one block and loop over it, or lay out all of them
                "remat": "none",  # none | dots | dots_no_batch | full
            },
            "objective": {
                "contrastive": {
                    "weight": 0.03,
                    "temperature": 0.1,
                    "pool": "patches",  # patches | all | class
                    "supervised": False,
                },
                "reconstruction": {"weight": 0.67},
                "denoising": {"weight": 0.30},
            },
            "noise": {
                "sigma_max": 0.05,
                "embed_level": True,  # tell the decoder how much noise there is
                "level_scale": placeholder(float),  # by default 1000 / sigma_max
                "target": "scaled",  # scaled: sigma * e | unit: e
            },
            "optimizer": {
                "learning_rate": 2.5e-4,  # for 256 images; scaled to batch_size
                "weight_decay": 0.05,
                "warmup_steps": placeholder(int),
                "warmup_epochs": 40.0,
                "beta1": 0.9,
                "beta2": 0.95,
                "epsilon": 1e-8,
                "moment_dtype": "float32",  # of the first moment: float32 | bfloat16
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "checkpoint": {
                "every_steps": 1000,
                "keep_last": 3,
                "keep_every_steps": placeholder(int),  # and these for ever
            },
            "probe": {  # k nearest neighbours on a labelled split, while training; 0 is never
                "every_steps": placeholder(int),
                "every_epochs": placeholder(float),
                "split": "test",
                "bank": 10000,  # examples of data.split to look for neighbours among
                "queries": 5000,  # examples of probe.split to classify
                "k": 20,
                "temperature": 0.07,
            },
            "figures": {"every_steps": placeholder(int), "images": 6},
        }
    ).lock()


def load_recipe(beside: str, name: str) -> ConfigDict:
    """The configuration of the recipe ``name`` in the folder of the file ``beside``: what a recipe
    that changes another one starts from."""
    return runpy.run_path(str(Path(beside).with_name(f"{name}.py")))["get_config"]()


def one_line(error: BaseException) -> str:
    """An exception's message on one line, with its kind where the message is bare."""
    text = " ".join(str(error).split()).replace("\\n", " ").strip("'\" ")[:400]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def check_keys(config: ConfigDict) -> None:
    """Every key of the defaults is there, with a value of its kind, and no other.

    Raises:
        UserError: naming the key, and the nearest valid one.
    """
    defaults, given = (flatten(c.to_dict()) for c in (default_config(), config))
    for key in given.keys() - defaults.keys():
        near = difflib.get_close_matches(key, defaults, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown key config.{key}; did you mean config.{near}?")
    for key in defaults.keys() - given.keys():
        raise UserError(
            f"config.{key} is missing; start a recipe from can_jax.config.default_config()"
        )
    for key, value in given.items():
        kind = type(defaults[key])
        number = kind is float and isinstance(value, int) and not isinstance(value, bool)
        if defaults[key] is not None and not isinstance(value, kind) and not number:
            raise UserError(
                f"config.{key}={value!r} is a {type(value).__name__}, not a {kind.__name__}"
            )


def resolve(config: ConfigDict) -> ConfigDict:
    """A checked copy in which ``data.image_size`` is (height, width).

    Raises:
        UserError: the first thing found wrong, in one line.
    """
    check_keys(config)
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.data.image_size = as_size(config.data.image_size)
    for check in (check_data, check_model, check_objectives, check_augment, check_schedule):
        check(config)
    return config


def as_size(value: Any) -> tuple[int, int]:
    """An int or a pair as (height, width)."""
    sides = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(sides) not in (1, 2) or any(not isinstance(side, int) or side < 1 for side in sides):
        raise UserError(
            f"config.data.image_size={value!r}: give an int, or (height, width), in pixels"
        )
    return sides[0], sides[-1]


def check(condition: Any, message: str) -> None:
    """Raise `UserError` with the message, prefixed by `config.`, unless the condition holds."""
    if not condition:
        raise UserError(f"config.{message}")


def check_one_of(key: str, value: Any, choices: Any) -> None:
    """The value is one of the choices."""
    check(value in choices, f"{key}={value!r}: choose one of {', '.join(map(str, choices))}")


def check_data(config: ConfigDict) -> None:
    """Source, sizes and batch."""
    data = config.data
    check_one_of("data.source", data.source, DATA_SOURCES)
    check(1 <= data.channels <= 8, f"data.channels={data.channels}: between 1 and 8")
    if data.source in ("arrays", "folder"):
        check(data.path, f"data.path is not set: say where the {data.source} data lies")
    check(
        data.source not in ("folder", "tfds") or data.channels in (1, 3, 4),
        f"data.channels={data.channels}: image files are decoded to 1, 3 or 4 channels",
    )
    if data.source == "tfds":
        check(data.name, "data.name is not set: name the TFDS data set, such as imagenet2012")
    check(config.batch_size >= 1, f"batch_size={config.batch_size}: at least 1 image")
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
    check(noise.sigma_max >= 0, f"noise.sigma_max={noise.sigma_max}: at least 0")
    check(
        noise.sigma_max or not objective.denoising.weight,
        "noise.sigma_max=0: there is no noise to predict; set objective.denoising.weight=0",
    )
    if objective.contrastive.weight:
        temperature, views = objective.contrastive.temperature, config.augment.views
        check(temperature > 0, f"objective.contrastive.temperature={temperature}: above 0")
        check(views >= 2, f"augment.views={views}: the contrastive loss compares at least 2")
        check(config.batch_size >= 2, "batch_size=1: the contrastive loss has no negatives")


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
    for name in ("total_steps", "total_epochs", "total_examples"):
        check(config[name] is None or config[name] > 0, f"{name}={config[name]}: above 0")
    for name in ("every_steps", "keep_last"):
        value = config.checkpoint[name]
        check(value >= 1, f"checkpoint.{name}={value}: at least 1")
    for block in ("probe", "figures"):
        every = config[block].every_steps
        check(every is None or every >= 0, f"{block}.every_steps={every}: at least 0, never")
    check_one_of("optimizer.moment_dtype", config.optimizer.moment_dtype, ("float32", "bfloat16"))
    check(
        config.optimizer.learning_rate > 0,
        f"optimizer.learning_rate={config.optimizer.learning_rate}: above 0",
    )


def steps_of(block: ConfigDict, name: str, batch_size: int, examples: int) -> int | None:
    """A duration in steps: ``{name}_steps``, else ``{name}_epochs``, else ``{name}_examples``.

    Args:
        block: the config block that holds the keys.
        name: what the duration is of, such as `total` or `warmup`.
        batch_size: images of a global batch.
        examples: images of an epoch.

    Returns:
        Steps, at least 1 where epochs or examples are not 0; None if no key is set.
    """
    if block.get(f"{name}_steps") is not None:
        return block[f"{name}_steps"]
    if block.get(f"{name}_epochs") is not None:
        wanted = block[f"{name}_epochs"] * examples
    elif block.get(f"{name}_examples") is not None:
        wanted = block[f"{name}_examples"]
    else:
        return None
    return max(1, round(wanted / batch_size)) if wanted else 0


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON, keys sorted; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)
