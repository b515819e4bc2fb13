"""Every key a recipe may set, and its default."""

import difflib
import json
import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from can_jax.data.depth import Range, check_range
from can_jax.errors import UserError
from can_jax.files import expand_home
from can_jax.shipped import find
from can_jax.validate import CHECKS

# What keys mean in a file that was written before there were such keys.
BEFORE = {"noise": {"level_tokens": "visible"}}


def default_config() -> ConfigDict:
    """CAN as in the paper, ViT-B/16 at 224 px; a recipe changes what it needs to.

    Lengths of time may be given in steps, epochs or examples: `total_steps` | `total_epochs` |
    `total_examples`, and likewise `warmup_*` and `every_*`. Steps win over epochs, epochs over
    examples.
    """
    return ConfigDict(
        {
            "seed": 0,
            # Weights of a new run: a run directory, an export, a folder of Hugging Face or timm,
            # or a file: npz, safetensors, pth, pt, bin.
            "init_from": placeholder(str),
            "batch_size": 4096,  # images of the global batch, each of them seen in every view
            "total_steps": placeholder(int),
            "total_epochs": placeholder(float),
            "total_examples": placeholder(int),
            "log_every_steps": 50,
            "skipped_updates_limit": 20,  # in a row, not finite, at which a run stops; 0 is never
            "spike": {  # of the loss: it stays above its running mean
                "deviations": 6.0,  # by so many running deviations
                "steps": 10,  # in a row; 0 is never
                "rewinds": 0,  # so often go back to before it, and skip the images since; then stop
            },
            "check_replicas": True,  # before saving: do all devices hold the same?
            "stuck_after_seconds": 1800.0,  # without a step, a run ends itself; 0 is never
            "data": {
                # folder | tfrecord | webdataset | tfds | arrays | shapes | mixture
                "source": "folder",
                "path": placeholder(str),
                "name": placeholder(str),  # of the TFDS data set
                "split": "train",
                "image_size": placeholder(object),  # pixels: an int, or (height, width)
                "channels": 3,
                "shapes_count": 8192,  # images that the source `shapes` draws for training
                "image_key": "image/encoded",  # features of TFRecords
                "label_key": "image/class/label",
                "mixture": (),  # a dict for each part: keys of this block to change, and `weight`
                "index": placeholder(str),  # its folder, if it is not beside the data
                "streaming": False,  # read shards from start to end, where there can be no index
                "window": 4096,  # streamed examples that are shuffled together
                "examples": placeholder(int),  # about how many are streamed; epochs count by it
                "exif_orientation": False,  # turn photographs upright, as their camera says
                "max_pixels": 50_000_000,  # of an image; a larger one counts as broken
                # (low, high): the values that become black and white in images of more than 8
                # bits. By default such an image is used if it fills 16 bits, else it is broken.
                "range": placeholder(object),
                "skip_limit": 0.25,  # the run stops above this share of broken images
                "cache_gb": 0.0,  # of encoded images that a process keeps in memory
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
                    "block": placeholder(int),  # keys compared at a time; as memory allows
                },
                # normalize: the targets, each patch by its own mean and deviation
                "reconstruction": {"weight": 0.67, "normalize": True},
                "denoising": {"weight": 0.30},
            },
            "accumulation": {  # of gradients, where the whole batch does not fit the memory
                "microbatches": 1,
                "negatives": "batch",  # batch: as without | microbatch: cheaper, see gradients.py
            },
            "noise": {
                "sigma_max": 0.05,
                "embed_level": True,  # tell the decoder how much noise there is
                "level_scale": placeholder(float),  # by default 1000 / sigma_max
                "level_tokens": "all",  # the patch tokens that get the level: all | visible
                "target": "scaled",  # scaled: sigma * e | unit: e
            },
            "optimizer": {
                "learning_rate": 2.5e-4,  # for 256 images; scaled to batch_size
                "weight_decay": 0.05,
                # By what is found in a parameter's path, the first pattern that is:
                "learning_rate_scale": (),  # (pattern, factor) pairs, such as ("encoder/", 0.1)
                "freeze": (),  # patterns of parameters that stay as they are
                "warmup_steps": placeholder(int),
                "warmup_epochs": 40.0,
                "beta1": 0.9,
                "beta2": 0.95,
                "epsilon": 1e-8,
                "moment_dtype": "float32",  # of the first moment: float32 | bfloat16
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "checkpoint": {
                "every_steps": 1000,  # and before each probe and figure
                "keep_last": 3,
                "keep_every_steps": placeholder(int),  # and these for ever
            },
            "probe": {  # k nearest neighbours on a labelled split, while training; 0 is never
                "every_steps": placeholder(int),
                "every_epochs": placeholder(float),
                # Where there is no split `test`, `val` or `validation` takes its place.
                "split": "test",
                # Of the images of data.split, those to classify where there is no other split, or
                # none but data.split itself. They are never among those to look for neighbours in.
                "held_out": 0.05,
                "bank": 10000,  # examples of data.split to look for neighbours among
                "queries": 5000,  # examples of probe.split to classify
                "k": 20,
                "temperature": 0.07,
            },
            "figures": {"every_steps": placeholder(int), "images": 6},
        }
    ).lock()


def load_recipe(beside: str, name: str) -> ConfigDict:
    """Return the configuration of another recipe, for a recipe that changes it.

    Args:
        beside: the file of the recipe that asks.
        name: of a file in the same folder, without its suffix, or else of a shipped recipe.
    """
    path = Path(beside).parent / f"{name}.py"
    if not path.is_file():
        path = find(name, "recipe", f"load_recipe({name!r}) of {beside}")
    return runpy.run_path(str(path))["get_config"]()


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def check_against(config: ConfigDict, default: ConfigDict, origin: str) -> None:
    """Every key of the defaults is there, with a value of its kind, and no other.

    Args:
        config: of a recipe.
        default: what recipes start from.
        origin: what a recipe calls to get it.

    Raises:
        UserError: naming the key, and the nearest valid one.
    """
    defaults, given = (flatten(c.to_dict()) for c in (default, config))
    for key in given.keys() - defaults.keys():
        near = difflib.get_close_matches(key, defaults, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown key config.{key}; did you mean config.{near}?")
    for key in defaults.keys() - given.keys():
        raise UserError(f"config.{key} is missing; start a recipe from {origin}")
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
    check_against(config, default_config(), "can_jax.config.default_config()")
    config = expand_paths(config)
    with config.ignore_type():
        config.data.image_size = as_size(config.data.image_size)
        config.data.range = as_range(config.data.range)
    for check in CHECKS:
        check(config)
    return config


def expand_paths(config: ConfigDict) -> ConfigDict:
    """Return a copy in which each string that begins with ``~`` has the home in its place.

    No setting but a path begins so; parts of a mixture and lists of data sets are looked through.

    Raises:
        UserError: there is no such home; names the key.
    """

    def expanded(value: Any, key: str) -> Any:
        if isinstance(value, str):
            try:
                return expand_home(value)
            except UserError as error:
                raise UserError(f"{key}={error}") from None
        if isinstance(value, dict):
            return {name: expanded(v, f"{key}: {name}") for name, v in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(expanded(v, key) for v in value)
        return value

    def visit(block: ConfigDict, prefix: str) -> None:
        for name, value in block.items():
            if isinstance(value, ConfigDict):
                visit(value, f"{prefix}{name}.")
            elif (found := expanded(value, prefix + name)) != value:
                block[name] = found

    config = config.copy_and_resolve_references()
    visit(config, "config.")
    return config


def as_size(value: Any) -> tuple[int, int]:
    """An int or a pair as (height, width)."""
    sides = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(sides) not in (1, 2) or any(not isinstance(side, int) or side < 1 for side in sides):
        raise UserError(
            f"config.data.image_size={value!r}: give an int, or (height, width), in pixels"
        )
    return sides[0], sides[-1]


def as_range(value: Any) -> Range:
    """Return `data.range` as a pair of floats, or None.

    Raises:
        UserError: It is not two numbers, the first the smaller one.
    """
    try:
        return check_range(value)
    except ValueError as error:
        raise UserError(f"config.data.range={error}") from error


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


def from_json(text: str) -> ConfigDict:
    """Return the configuration that `to_json` wrote, also one of an earlier version."""
    config = default_config()
    for block, values in BEFORE.items():
        config[block].update(values)

    def fill(block: ConfigDict, values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if not isinstance(block, ConfigDict) or key not in block:
                raise UserError(f"config.{prefix}{key} is no key of this version of can_jax")
            if isinstance(value, dict):
                fill(block[key], value, f"{prefix}{key}.")
            else:
                with block.ignore_type():
                    block[key] = _tuples(value)

    fill(config, json.loads(text), "")
    return config


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
