"""Read what the files beside weights state of the encoder: sizes, heads, normalization, epsilon.

Each function returns facts by the names of our export's manifest, as far as they are stated. A mean
of None says that the normalization is none that this encoder can apply.
"""

import re
from typing import Any

from etils import epath

from can_jax.errors import UserError, one_line
from can_jax.weights.reading import read_json

Facts = dict[str, Any]

MANIFEST = "manifest.json"  # of our export
CONFIG = "config.json"  # of a run of ours, of a folder of Hugging Face, or of timm
FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
EXPORTED = ("model.safetensors", "model.npz")
SAME_STRUCTURE = ("vit", "vit_mae")  # model types of Hugging Face
HUGGINGFACE_DEFAULTS = {"num_attention_heads": 12, "layer_norm_eps": 1e-12}  # of these types
EXACT_GELU = ("gelu", "gelu_python")
EXACT = "exact (erf)"  # as a manifest calls our GELU
# Arguments of timm's VisionTransformer that neither change the features of given arrays nor go
# unseen: those of sizes are compared with the arrays.
HARMLESS = {
    "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "num_classes",
    "global_pool", "class_token", "dynamic_img_size", "strict_img_size", "mlp_ratio", "qkv_bias",
    "init_values", "qk_norm", "reg_tokens", "pre_norm", "fc_norm", "drop_rate", "drop_path_rate",
}  # fmt: skip


# Names of timm's plain ViTs, perhaps with a tag: others, such as vit_base_patch16_clip_224 or
# vit_base_patch16_rope_224, have another structure or activation.
PLAIN_VIT = re.compile(r"vit_[a-z]+_patch\d+_\d+(\.\w+)*")
# What timm's arguments of structure have to be, where they are stated.
PLAIN_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "class_token": (True,), "pre_norm": (False,), "qk_norm": (False,), "reg_tokens": (0,),
    "init_values": (None,), "fc_norm": (False, None), "qkv_bias": (True,), "mlp_ratio": (4,),
}  # fmt: skip


def facts_beside(file: epath.Path) -> Facts:
    """Return what the folder of a file states of it."""
    folder = file.parent
    if manifest := _manifest(folder):
        listed = manifest.get("sha256", dict.fromkeys(EXPORTED))
        if file.name in listed:
            return manifest["model"]
    shard = file.name.startswith(("model-", "pytorch_model-"))
    if (file.name in FILES or shard) and (folder / CONFIG).exists():
        config = read_json(folder / CONFIG)
        if is_of_library(config):
            return facts_of_library(folder, config)
    return {}


def is_run(place: epath.Path) -> bool:
    """Return whether a folder is a run directory of ours."""
    if not place.is_dir() or _manifest(place) or not (place / CONFIG).exists():
        return False
    return isinstance(read_json(place / CONFIG).get("objective"), dict)


def file_of_folder(folder: epath.Path) -> epath.Path:
    """Return the file of weights in an export, or in a folder of Hugging Face or timm.

    Raises:
        UserError: The folder is neither, or holds no weights.
    """
    if _manifest(folder):
        found = [folder / name for name in EXPORTED if (folder / name).exists()]
        if not found:
            raise UserError(f"{folder} holds a program, no weights: export to another format")
        return found[0]
    found = [folder / name for name in FILES if (folder / name).exists()]
    if not (folder / CONFIG).exists():
        hint = f"; give the file itself: {found[0]}" if found else ""
        raise UserError(
            f"{folder} is no run directory, no export ({MANIFEST}) and no folder of Hugging Face "
            f"or timm: {CONFIG} is missing{hint}"
        )
    if not is_of_library(read_json(folder / CONFIG)):
        raise UserError(
            f"{folder}/{CONFIG} is neither the configuration of a run nor that of a model of "
            "Hugging Face (model_type) or timm (architecture)"
        )
    if not found:
        raise UserError(f"{folder} is incomplete: it holds none of {', '.join(FILES)}")
    return found[0]


def is_of_library(config: dict[str, Any]) -> bool:
    """Return whether a `config.json` is of Hugging Face or timm."""
    return any(key in config for key in ("model_type", "architectures", "architecture"))


def facts_of_library(folder: epath.Path, config: dict[str, Any]) -> Facts:
    """Return what the `config.json` of Hugging Face or timm states.

    Raises:
        UserError: The model is of another structure, or the file is malformed.
    """
    place = folder / CONFIG
    try:
        if "architecture" in config or "pretrained_cfg" in config:
            return _timm(config)
        processor = folder / "preprocessor_config.json"
        return _huggingface(config) | (
            _processor(read_json(processor)) if processor.exists() else {}
        )
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{place} is malformed: {one_line(error)}") from error


def _manifest(folder: epath.Path) -> dict[str, Any] | None:
    """Return the manifest of an export, or None where there is none of ours."""
    if not (folder / MANIFEST).exists():
        return None
    content = read_json(folder / MANIFEST, of=None)
    model = content.get("model") if isinstance(content, dict) else None
    return content if isinstance(model, dict) and {"width", "heads"} <= model.keys() else None


def _huggingface(config: dict[str, Any]) -> Facts:
    kind = config.get("model_type")
    names = config.get("architectures") or [""]
    if kind is None and names[0].startswith(("ViTModel", "ViTMAE", "ViTFor")):
        kind = "vit"
    if kind not in SAME_STRUCTURE:
        raise UserError(
            f"a model of type {kind or names[0]!r} has another structure; supported are "
            f"{' and '.join(SAME_STRUCTURE)}"
        )
    if (activation := config.get("hidden_act", "gelu")) not in EXACT_GELU:
        raise UserError(f"hidden_act={activation!r}: this encoder computes the exact GELU")
    names = {
        "width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads",
        "channels": "num_channels", "layer_norm_eps": "layer_norm_eps",
    }  # fmt: skip
    config = HUGGINGFACE_DEFAULTS | config
    facts = {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
    if "patch_size" in config:
        facts["patch_size"] = _side(config["patch_size"])
    return facts | {"gelu": EXACT}


def _processor(config: dict[str, Any]) -> Facts:
    """Return the normalization of an image processor of Hugging Face."""
    if not config.get("do_normalize", True):
        return {"mean": 0.0, "std": 1.0}
    rescaled = config.get("do_rescale", True) and config.get("rescale_factor", 1 / 255)
    if abs(255 * rescaled - 1) > 1e-6:
        return {"mean": None, "std": None}
    found = {"mean": config.get("image_mean"), "std": config.get("image_std")}
    return {} if None in found.values() else found


def _timm(config: dict[str, Any]) -> Facts:
    name = config.get("architecture", "")
    if not PLAIN_VIT.fullmatch(name):
        raise UserError(f"the architecture {name!r} is not supported; a plain vit_…_patch…_… is")
    arguments = config.get("model_args") or {}
    unknown = arguments.keys() - HARMLESS
    other = {
        key for key, plain in PLAIN_ARGUMENTS.items() if arguments.get(key, plain[0]) not in plain
    }
    if refused := sorted(unknown | other):
        raise UserError(
            f"model_args {refused[0]}={arguments[refused[0]]!r} is not supported: this encoder is "
            "a plain ViT"
        )
    names = {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "channels": "in_chans"}
    facts = {ours: arguments[theirs] for ours, theirs in names.items() if theirs in arguments}
    if "patch_size" in arguments:
        facts["patch_size"] = _side(arguments["patch_size"])
    pretrained = config.get("pretrained_cfg") or config
    found = {key: pretrained.get(key) for key in ("mean", "std")}
    if None not in found.values():
        facts |= found
    return facts | {"gelu": EXACT}


def _side(value: Any) -> int:
    """Return the side of a square that is stored as a number or as a pair."""
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise UserError(f"patch_size={value}: patches have to be square")
    return sides.pop()
