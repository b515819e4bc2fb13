"""Parsers of the JSON files in which Hugging Face and timm describe a model.

Models with a structure that can_jax's encoder does not support are rejected.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from can_jax.utils.errors import UserError, one_line
from can_jax.utils.files import read_json

Facts = dict[str, Any]

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
# The model types of Hugging Face that this encoder computes, and their defaults for absent keys
# whose values the arrays do not determine.
HUGGINGFACE_DEFAULTS: dict[str, Facts] = {
    "vit": {"num_attention_heads": 12, "layer_norm_eps": 1e-12},
    "vit_mae": {"num_attention_heads": 12, "layer_norm_eps": 1e-12},
    "vit_msn": {"num_attention_heads": 12, "layer_norm_eps": 1e-6},
    "dinov2": {"num_attention_heads": 12, "layer_norm_eps": 1e-6},
    "dinov2_with_registers": {"num_attention_heads": 12, "layer_norm_eps": 1e-6},
}
HUGGINGFACE_KEYS = {
    "width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads",
    "mlp_width": "intermediate_size", "channels": "num_channels", "patch_size": "patch_size",
    "image_size": "image_size", "layer_norm_eps": "layer_norm_eps", "qkv_bias": "qkv_bias",
}  # fmt: skip
EXACT, TANH, QUICK = "exact (erf)", "tanh", "quick (sigmoid)"  # Forms of GELU in a manifest.
FORMS = {"exact": EXACT, "tanh": TANH, "quick": QUICK}  # by value of the option `gelu`
ACTIVATIONS = {
    "gelu": EXACT, "gelu_python": EXACT, "gelu_new": TANH, "gelu_pytorch_tanh": TANH,
    "quick_gelu": QUICK,
}  # fmt: skip
TIMM_KEYS = {
    "width": "embed_dim", "depth": "depth", "heads": "num_heads", "channels": "in_chans",
    "patch_size": "patch_size", "image_size": "img_size",
}  # fmt: skip
# Options, and the arguments of timm's VisionTransformer that state them. The arrays must have the
# stated options.
TIMM_OPTIONS = {
    "layer_scale": "init_values", "qk_norm": "qk_norm", "registers": "reg_tokens",
    "pre_norm": "pre_norm", "qkv_bias": "qkv_bias",
}  # fmt: skip
# Arguments that this module reads, that the arrays determine, or that do not affect the features.
# All other arguments are rejected.
HARMLESS = {
    *TIMM_KEYS.values(), *TIMM_OPTIONS.values(), "num_classes", "global_pool", "class_token",
    "dynamic_img_size", "strict_img_size", "mlp_ratio", "fc_norm", "no_embed_class", "drop_rate",
    "drop_path_rate", "act_layer",
}  # fmt: skip
TIMM_ACTIVATIONS = {"gelu": EXACT, "gelu_tanh": TANH, "quick_gelu": QUICK}
# The supported values of some arguments; the first value is the default of an absent argument.
PLAIN_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "class_token": (True,), "mlp_ratio": (4,), "act_layer": tuple(TIMM_ACTIVATIONS),
}  # fmt: skip
# Patterns of the timm architectures that this encoder computes, without the tag, and the facts they
# imply. Other architectures, such as vit_base_patch16_rope_224, have another structure.
TIMM_ARCHITECTURES: dict[str, Facts] = {
    r"vit_[a-z]+_patch\d+_(plus_|36x1_)?\d+": {},
    r"vit_[a-z]+_patch\d+_(reg\d+_)?(dinov2|tipsv2)": {},
    r"(flexivit_[a-z]+|eva_large_patch14_\d+)": {},
    r"deit3?_[a-z]+_patch\d+_\d+": {},
    r"vit_[a-z]+_patch\d+_clip_\d+": {"layer_norm_eps": 1e-5},
    r"vit_[a-z]+_patch\d+_clip_quickgelu_\d+": {"layer_norm_eps": 1e-5, "gelu": QUICK},
}


# Weights of CLIP, by architecture and tag, that were trained with QuickGELU, although timm's
# architecture has the exact GELU. timm notes them as natively QuickGELU.
TRAINED_WITH_QUICK = (
    r"vit_\w+_clip_\d+\.(openai|metaclip\w*|dfn\db)|vit_base_patch32_clip_224\.laion400m_e32"
)


class Stated(NamedTuple):
    """The facts that files state about an encoder, such as its width and its number of heads.

    Attributes:
        facts: The value of each fact, by its name in an export's manifest. A mean or std of None
            means that the processor file states no value for images in [0, 1]. A gelu of None means
            that timm computes another form of GELU than the training used.
        keys: The file and key that state each fact, or the reason for a value of None.
    """

    facts: Facts
    keys: dict[str, str]


def is_of_library(config: dict[str, Any]) -> bool:
    """Return True if the content of a `config.json` is that of a Hugging Face or timm model."""
    return any(key in config for key in ("model_type", "architectures", "architecture"))


def stated_by_library(folder: epath.Path, config: dict[str, Any]) -> Stated:
    """Return the facts that Hugging Face or timm states in `config.json` and a processor file.

    Args:
        folder: The folder that holds `config.json`.
        config: The content of `config.json`.

    Raises:
        UserError: The model has an unsupported structure, or a file is malformed.
    """
    timm = "architecture" in config or "pretrained_cfg" in config
    stated = _parsed(_timm if timm else _huggingface, folder / CONFIG, config)
    processor = folder / PROCESSOR
    if not timm and processor.exists():
        stated = merged(stated, _parsed(_processor, processor, read_json(processor)))
    return stated


def merged(*parts: Stated) -> Stated:
    """Merge the facts that several files state.

    Raises:
        UserError: Two files state different values of a fact.
    """
    facts: Facts = {}
    keys: dict[str, str] = {}
    for part in parts:
        for name, value in part.facts.items():
            if name in facts and not equal_facts(value, facts[name]):
                raise UserError(
                    f"{part.keys[name]}={value}, but {keys[name]}={facts[name]}: correct or remove "
                    "the file that does not belong to these weights"
                )
        facts = part.facts | facts
        keys = part.keys | keys
    return Stated(facts, keys)


def equal_facts(value: Any, other: Any) -> bool:
    """Return whether two values are equal up to rounding; a single number is broadcast to a
    list."""
    if value == other:
        return True
    try:
        return np.allclose(np.asarray(value, float), np.asarray(other, float), rtol=1e-6, atol=0)
    except (TypeError, ValueError):  # The values are not numbers, or have different lengths.
        return False


def _parsed(parse: Callable[[Facts], Stated], path: epath.Path, content: Facts) -> Stated:
    """Apply a parser to the content of a file, and name the file in errors."""
    try:
        return parse(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is malformed: {one_line(error)}") from error


def _huggingface(config: Facts) -> Stated:
    kind = config.get("model_type")
    names = config.get("architectures") or [""]
    if kind is None and names[0].startswith(("ViTModel", "ViTMAE", "ViTFor")):
        kind = "vit"
    if kind not in HUGGINGFACE_DEFAULTS:
        raise UserError(
            f"a model of type {kind or names[0]!r} is not supported; supported are "
            f"{', '.join(HUGGINGFACE_DEFAULTS)}"
        )
    activation = config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(
            f"hidden_act={activation!r} is not supported; supported are {', '.join(ACTIVATIONS)}"
        )
    if config.get("use_swiglu_ffn"):
        raise UserError("use_swiglu_ffn=true is not supported: can_jax has only MLPs with GELU")
    defaults = HUGGINGFACE_DEFAULTS[kind]
    stated = _named(defaults | config, HUGGINGFACE_KEYS)
    for name, key in HUGGINGFACE_KEYS.items():
        if key in defaults and key not in config:
            stated.keys[name] += " (by default)"
    return Stated(
        stated.facts | {"gelu": ACTIVATIONS[activation]},
        stated.keys | {"gelu": f"{CONFIG}: hidden_act"},
    )


def _named(config: Facts, table: dict[str, str], prefix: str = "") -> Stated:
    """Return the facts that a configuration states, given the library's key for each fact."""
    facts = {ours: config[key] for ours, key in table.items() if key in config}
    if "patch_size" in facts:
        facts["patch_size"] = _side(facts["patch_size"])
    if "image_size" in facts:
        size = facts["image_size"]
        facts["image_size"] = list(size) if isinstance(size, list | tuple) else [size, size]
    keys = {ours: f"{CONFIG}: {prefix}{table[ours]}" for ours in facts}
    return Stated(facts, keys)


def _side(value: Any) -> int:
    """Return the side of square patches, which is stored as a number or as a pair."""
    sides = value if isinstance(value, list | tuple) else [value]
    if not sides or any(side != sides[0] for side in sides):
        raise UserError(f"patch_size={value}: patches must be square")
    return sides[0]


def _processor(config: Facts) -> Stated:
    """Return the normalization that an image processor of Hugging Face applies."""
    for key in ("do_normalize", "do_rescale"):
        if not isinstance(config.get(key), bool | None):
            raise UserError(f"{key}={config[key]!r} is neither true nor false")
    names = {"mean": "image_mean", "std": "image_std"}
    if reason := _not_in_unit_range(config):
        reason = f"{PROCESSOR} has {reason}, so its mean and std do not apply to images in [0, 1]"
        return Stated(dict.fromkeys(names), dict.fromkeys(names, reason))
    if not config.get("do_normalize", True):
        keys = {ours: f"{PROCESSOR}: do_normalize=false, so {ours}" for ours in names}
        return Stated({"mean": 0.0, "std": 1.0}, keys)
    facts = {ours: config.get(key) for ours, key in names.items()}
    keys = {
        ours: f"{PROCESSOR}: {key}" if config.get(key) is not None else f"{PROCESSOR} has no {key}"
        for ours, key in names.items()
    }
    return Stated(facts, keys)


def _not_in_unit_range(config: Facts) -> str | None:
    """Return the processor setting that moves images out of [0, 1], or None if there is none."""
    if not config.get("do_rescale", True):
        return f"do_rescale={json.dumps(config['do_rescale'])}"
    factor = config.get("rescale_factor", 1 / 255)
    is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not is_number or not math.isfinite(factor) or factor <= 0:
        raise UserError(f"rescale_factor={factor!r} is not a positive number")
    if abs(255 * factor - 1) > 1e-6:
        return f"rescale_factor={factor} instead of 1/255"
    shifted = [key for key in ("offset", "rescale_offset") if config.get(key)]
    return f"{shifted[0]}=true" if shifted else None


def _timm(config: Facts) -> Stated:
    name = config.get("architecture", "")
    implied = [
        facts
        for pattern, facts in TIMM_ARCHITECTURES.items()
        if re.fullmatch(rf"{pattern}(\.\w+)*", name)
    ]
    if not implied:
        raise UserError(
            f"the timm architecture {name!r} is not supported; supported are, for example, "
            "vit_base_patch16_224, vit_base_patch16_clip_224, vit_base_patch14_reg4_dinov2, "
            "deit3_base_patch16_224, flexivit_base and eva_large_patch14_196"
        )
    arguments = config.get("model_args") or {}
    unknown = arguments.keys() - HARMLESS
    other = {
        key for key, plain in PLAIN_ARGUMENTS.items() if arguments.get(key, plain[0]) not in plain
    }
    if refused := sorted(unknown | other):
        raise UserError(
            f"model_args {refused[0]}={arguments[refused[0]]!r} is not supported: can_jax has only "
            "the plain ViT"
        )
    facts, keys = _named(arguments, TIMM_KEYS | TIMM_OPTIONS, "model_args.")
    facts |= {"gelu": EXACT, "layer_norm_eps": 1e-6, **implied[0]}
    keys |= dict.fromkeys(("gelu", "layer_norm_eps"), f"{CONFIG}: architecture")
    if "act_layer" in arguments:  # It overrides the activation of the architecture.
        facts["gelu"] = TIMM_ACTIVATIONS[arguments["act_layer"]]
        keys["gelu"] = f"{CONFIG}: model_args.act_layer"
    pretrained = config.get("pretrained_cfg") or config
    tagged = name if "." in name else f"{name}.{pretrained.get('tag')}"
    if "act_layer" not in arguments and re.fullmatch(TRAINED_WITH_QUICK, tagged):
        facts["gelu"] = None
        keys["gelu"] = (
            f"{CONFIG}: {tagged} was trained with QuickGELU, but timm computes the exact form"
        )
    inside = "" if pretrained is config else "pretrained_cfg."
    channels, *size = pretrained.get("input_size") or [None]
    further = {
        "width": (config.get("num_features"), "num_features"),
        "channels": (channels, f"{inside}input_size"),
        "image_size": (size or None, f"{inside}input_size"),
        "mean": (pretrained.get("mean"), f"{inside}mean"),
        "std": (pretrained.get("std"), f"{inside}std"),
    }
    for ours, (value, key) in further.items():
        if ours not in facts and value is not None:
            facts[ours], keys[ours] = value, f"{CONFIG}: {key}"
    return Stated(facts, keys)
