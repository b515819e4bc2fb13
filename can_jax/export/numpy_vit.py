"""A NumPy reference of a ViT and of MAE's decoder, which requires only the arrays of a file.

The reference shares no code with can_jax's network. A wrong name, axis or position embedding in a
file therefore changes the output.
"""

import re

import numpy as np
from jaxtyping import Float
from scipy.special import erf

EPS = 1e-6  # LayerNorm's epsilon in MAE.
Arrays = dict[str, np.ndarray]


def norm(x: np.ndarray, arrays: Arrays, name: str, eps: float = EPS) -> np.ndarray:
    """Apply a LayerNorm to the last axis, with the parameters ``NAME.weight`` and ``NAME.bias``."""
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
    return x * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]


def _linear(x: np.ndarray, arrays: Arrays, name: str) -> np.ndarray:
    return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]


def _gelu(x: np.ndarray, form: str) -> np.ndarray:
    if form == "quick":
        return x / (1 + np.exp(-1.702 * x))
    if form == "tanh":
        return x * 0.5 * (1 + np.tanh(np.sqrt(np.float32(2 / np.pi)) * (x + 0.044715 * x**3)))
    return x * 0.5 * (1 + erf(x / np.sqrt(np.float32(2))))


def _blocks(
    x: np.ndarray, arrays: Arrays, name: str, heads: int, eps: float = EPS, gelu: str = "exact"
) -> np.ndarray:
    count, _, width = x.shape
    pattern = rf"{name}\.\d+\.norm1\.weight"
    for i in range(sum(1 for array in arrays if re.fullmatch(pattern, array))):
        block = f"{name}.{i}."
        qkv = _linear(norm(x, arrays, f"{block}norm1", eps), arrays, f"{block}attn.qkv")
        query, key, value = qkv.reshape(count, -1, 3, heads, width // heads).transpose(
            2, 0, 3, 1, 4
        )
        if f"{block}attn.q_norm.weight" in arrays:
            query = norm(query, arrays, f"{block}attn.q_norm", eps)
            key = norm(key, arrays, f"{block}attn.k_norm", eps)
        logits = query @ key.swapaxes(2, 3) / np.sqrt(np.float32(width // heads))
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ value
        mixed = mixed.transpose(0, 2, 1, 3).reshape(count, -1, width)
        x = x + _linear(mixed, arrays, f"{block}attn.proj") * arrays.get(f"{block}ls1.gamma", 1)
        hidden = _linear(norm(x, arrays, f"{block}norm2", eps), arrays, f"{block}mlp.fc1")
        branch = _linear(_gelu(hidden, gelu), arrays, f"{block}mlp.fc2")
        x = x + branch * arrays.get(f"{block}ls2.gamma", 1)
    return x


def encode(
    arrays: Arrays,
    pixels: Float[np.ndarray, "images height width channels"],
    heads: int,
    visible: int | None = None,
    *,
    eps: float = EPS,
    gelu: str = "exact",
    final_norm: bool = True,
) -> Float[np.ndarray, "images tokens units"]:
    """Return the tokens of normalized images, class token first.

    Args:
        arrays: The arrays of the encoder under MAE's names, including ``pos_embed``.
        pixels: The normalized images as floats, channels last.
        heads: The number of attention heads.
        visible: The number of leading patches to encode; None for all.
        eps: The epsilon of the LayerNorms.
        gelu: The form of GELU: ``exact``, ``tanh`` or ``quick``.
        final_norm: Whether to apply the final LayerNorm to the tokens.

    Raises:
        KeyError: An array is missing.
    """
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    kernel = arrays["patch_embed.proj.weight"]
    width, channels, patch, _ = kernel.shape
    count, high, wide, _ = pixels.shape
    cut = pixels.reshape(count, high // patch, patch, wide // patch, patch, channels)
    patches = cut.transpose(0, 1, 3, 5, 2, 4).reshape(count, -1, channels * patch * patch)
    tokens = patches @ kernel.reshape(width, -1).T + arrays["patch_embed.proj.bias"]
    first = np.broadcast_to(arrays["cls_token"], (count, 1, width))
    x = np.concatenate([first, tokens], axis=1) + arrays["pos_embed"]
    x = x if visible is None else x[:, : 1 + visible]
    registers = arrays.get("reg_token", np.zeros((1, 0, width), np.float32))
    repeated = np.broadcast_to(registers, (count, *registers.shape[1:]))
    x = np.concatenate([x[:, :1], repeated, x[:, 1:]], axis=1)
    if "norm_pre.weight" in arrays:
        x = norm(x, arrays, "norm_pre", eps)
    x = _blocks(x, arrays, "blocks", heads, eps, gelu)
    x = np.concatenate([x[:, :1], x[:, 1 + registers.shape[1] :]], axis=1)
    return norm(x, arrays, "norm", eps) if final_norm else x


def decode(
    arrays: Arrays, latent: Float[np.ndarray, "images visible units"], heads: int
) -> Float[np.ndarray, "images patches pixels"]:
    """Return the predictions of MAE's decoder for all patches; the first patches are the visible
    ones.

    Args:
        arrays: The arrays of the decoder under MAE's names.
        latent: The encoder's output for the class token and the visible patches.
        heads: The number of attention heads of the decoder.

    Raises:
        KeyError: An array is missing.
    """
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    positions = arrays["decoder_pos_embed"]
    shown = _linear(latent, arrays, "decoder_embed")
    count, visible, width = shown.shape
    hidden = np.broadcast_to(arrays["mask_token"], (count, positions.shape[1] - visible, width))
    x = np.concatenate([shown, hidden], axis=1) + positions
    x = norm(_blocks(x, arrays, "decoder_blocks", heads), arrays, "decoder_norm")
    return _linear(x, arrays, "decoder_pred")[:, 1:]
