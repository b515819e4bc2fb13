"""Detection of encoder options, such as LayerScale and registers, from another library's arrays."""

import re
from typing import Any

import numpy as np

from can_jax.models.variant import LAYER_NORM_EPS
from can_jax.utils.errors import UserError
from can_jax.weights.accounting import fits_table, refuse_unused
from can_jax.weights.layouts import Arrays
from can_jax.weights.library_configs import EXACT, FORMS, Stated
from can_jax.weights.torch_layout import encoder_names

# The epsilon of encoders with a LayerNorm before their blocks, unless a file states the epsilon.
CLIP_EPS = 1e-5
QKV_BIAS, EMBED_BIAS = "blocks.{}.attn.qkv.bias", "patch_embed.proj.bias"
# Facts that are compared with the arrays, which determine them.
COMPARED = ("qkv_bias", "layer_scale", "qk_norm", "pre_norm", "registers")
# For each option, a pattern of the arrays that only an encoder with this option has.
ARRAYS_OF_OPTIONS = {
    "layer_scale": r"blocks\.\d+\.ls[12]\.gamma",
    "qk_norm": r"blocks\.\d+\.attn\.[qk]_norm\.(weight|bias)",
    "pre_norm": r"norm_pre\.(weight|bias)",
}


def plain_arrays(arrays: Arrays, stated: Stated) -> tuple[Arrays, dict[str, Any]]:
    """Return arrays under the names that `torch_layout` expects, and the encoder's options.

    Missing biases become zeros. The learned position embeddings of the class token and of the
    registers are added to the arrays of these tokens, since their positions never change.

    Args:
        arrays: The arrays under MAE's names.
        stated: The facts that files state about the encoder.

    Raises:
        UserError: The arrays contradict a stated option, a stated epsilon is invalid, or the grid
            of learned positions is unknown.
    """
    arrays, facts = dict(arrays), stated.facts
    depth = len({name.split(".")[1] for name in arrays if name.startswith("blocks.")})
    options: dict[str, Any] = {}
    for name, pattern in ARRAYS_OF_OPTIONS.items():
        if any(re.fullmatch(pattern, array) for array in arrays):
            options[name] = 1.0 if name == "layer_scale" else True
    if "register_tokens" in arrays and "reg_token" not in arrays:
        arrays["reg_token"] = arrays.pop("register_tokens")
    if "reg_token" in arrays:
        options["registers"] = int(np.prod(arrays["reg_token"].shape[:-1]))
    if "fc_norm.weight" in arrays and "norm.weight" not in arrays:
        options["norm"] = "pooled"
        for suffix in ("weight", "bias"):
            if f"fc_norm.{suffix}" in arrays:
                arrays[f"norm.{suffix}"] = arrays.pop(f"fc_norm.{suffix}")
    _add_biases(arrays, depth, stated, bool(options.get("pre_norm")))
    for name in COMPARED:
        # `_add_biases` has compared the biases, which are no option.
        if name == "qkv_bias":
            continue
        if name in facts and bool(facts[name]) != bool(options.get(name)):
            there = "have no such parameter" if facts[name] else "have such a parameter"
            raise UserError(f"{stated.keys[name]}={facts[name]}, but the arrays {there}")
    if _has_learned_positions(arrays):
        options |= {
            "positions": "learned",
            "position_grid": _fold_positions(arrays, stated, options),
        }
    default = CLIP_EPS if options.get("pre_norm") else LAYER_NORM_EPS
    epsilon = facts.get("layer_norm_eps", default)
    if isinstance(epsilon, bool) or not isinstance(epsilon, float | int) or not 0 < epsilon <= 1e-2:
        raise UserError(
            f"{stated.keys['layer_norm_eps']}={epsilon!r}: give a number above 0, at most 0.01"
        )
    if abs(epsilon / LAYER_NORM_EPS - 1) > 1e-3:
        options["epsilon"] = float(epsilon)
    if facts.get("gelu") not in (None, EXACT):
        options["gelu"] = {form: option for option, form in FORMS.items()}[facts["gelu"]]
    return arrays, options


def _add_biases(arrays: Arrays, depth: int, stated: Stated, pre_norm: bool) -> None:
    """Add zeros for absent biases that this project's encoder always has.

    The biases of queries, keys and values are added if no block has them. A bias of the patch
    embedding is added only for the option ``pre_norm``.

    Raises:
        UserError: The arrays contradict a stated ``qkv_bias``.
    """
    weights = [f"blocks.{i}.attn.qkv.weight" for i in range(depth)]
    biases = sorted(n for n in arrays if re.fullmatch(r"blocks\.\d+\.attn\.qkv\.bias", n))
    if stated.facts.get("qkv_bias") is False and biases:
        raise UserError(f"{stated.keys['qkv_bias']}=False, but the arrays have {biases[0]}")
    if not biases and all(name in arrays for name in weights):
        if stated.facts.get("qkv_bias"):
            raise UserError(
                f"{stated.keys['qkv_bias']}={stated.facts['qkv_bias']}, but the arrays have no "
                f"{QKV_BIAS.format(0)}"
            )
        for i, name in enumerate(weights):
            arrays[QKV_BIAS.format(i)] = np.zeros(arrays[name].shape[:1], arrays[name].dtype)
    embed = arrays.get("patch_embed.proj.weight")
    if pre_norm and embed is not None and EMBED_BIAS not in arrays:
        arrays[EMBED_BIAS] = np.zeros(embed.shape[:1], embed.dtype)


def _has_learned_positions(arrays: Arrays) -> bool:
    """Return whether `pos_embed` has a valid shape, and is neither zero nor a sin-cos table."""
    table, embed = arrays.get("pos_embed"), arrays.get("patch_embed.proj.weight")
    if table is None or embed is None or embed.ndim != 4:
        return False
    shaped = table.dtype.kind == "f" and table.ndim == 3 and table.shape[::2] == (1, len(embed))
    return shaped and bool(table.any()) and not fits_table(table, len(embed))


def _fold_positions(arrays: Arrays, stated: Stated, options: dict[str, Any]) -> tuple[int, int]:
    """Reduce learned positions to those of the patches, and return their grid (height, width).

    The position embeddings of the class token and of the registers are added to the arrays of these
    tokens.

    Raises:
        UserError: The number of positions fits neither a stated image size nor a square grid. The
            array of a token is missing, or has another width than the encoder.
    """
    table, (width, _, patch, _) = arrays["pos_embed"][0], arrays["patch_embed.proj.weight"].shape
    registers = options.get("registers", 0)
    depth = len({name.split(".")[1] for name in arrays if name.startswith("blocks.")})
    size = stated.facts.get("image_size")
    stated_grid = None if size is None else (size[0] // patch, size[1] // patch)
    found = _grid_of_rows(len(table), (1, 1 + registers, 0), stated_grid)
    if found is None:
        # An unused array, such as `dist_token`, may explain the extra rows.
        refuse_unused(arrays, encoder_names(depth, options))
        raise UserError(
            f"pos_embed has {len(table)} learned rows, which do not form a square grid, and no "
            "file states a matching image size: use a folder with config.json"
        )
    prefix, grid = found
    # The positions of the class token and the registers never change, so they are added here.
    if prefix:
        _require_width(arrays, "cls_token", width)
        arrays["cls_token"] = arrays["cls_token"] + table[:1]
    if prefix > 1:
        _require_width(arrays, "reg_token", width)
        arrays["reg_token"] = arrays["reg_token"] + table[1:prefix]
    rows = [np.zeros_like(table[:1]), table[prefix:]]
    arrays["pos_embed"] = np.concatenate(rows)[None]
    return grid


def _grid_of_rows(
    rows: int, prefixes: tuple[int, ...], stated: tuple[int, int] | None
) -> tuple[int, tuple[int, int]] | None:
    """Return the number of position embeddings before those of the patches, and the patch grid.

    The stated grid takes precedence over a square grid.

    Args:
        rows: The number of position embeddings.
        prefixes: The possible numbers of position embeddings before those of the patches, the most
            common first.
        stated: The grid (height, width) that files state; None if they state none.

    Returns:
        The number from ``prefixes`` and the grid (height, width); None if no grid fits.
    """
    for prefix in prefixes:
        if stated is not None and stated[0] * stated[1] == rows - prefix:
            return prefix, stated
    for prefix in prefixes:
        side = round(np.sqrt(max(0, rows - prefix)))
        if side and side**2 == rows - prefix:
            return prefix, (side, side)
    return None


def _require_width(arrays: Arrays, name: str, width: int) -> None:
    """Raise `UserError` if a token, such as the class token, is missing or has another width."""
    if name not in arrays:
        raise UserError(
            f"the weights have no {name}: encoders without a class token are not supported"
        )
    shape = arrays[name].shape
    if shape[-1:] != (width,):
        raise UserError(f"{name} has shape {shape}, but this encoder has the width {width}")
