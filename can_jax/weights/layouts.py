"""Conversions of parameter names and shapes between MAE and other libraries.

Each conversion is to or from the layout of MAE and timm; see `torch_layout.py`.
"""

import re
from collections.abc import Callable

import numpy as np

from can_jax.utils.errors import UserError, one_line

Arrays = dict[str, np.ndarray]

# Patterns of MAE's names and of Hugging Face's; `{}` is the index of a block.
HUGGINGFACE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "blocks.{}.norm1": "encoder.layer.{}.layernorm_before",
    "blocks.{}.norm2": "encoder.layer.{}.layernorm_after",
    "blocks.{}.attn.proj": "encoder.layer.{}.attention.output.dense",
    "blocks.{}.mlp.fc1": "encoder.layer.{}.intermediate.dense",
    "blocks.{}.mlp.fc2": "encoder.layer.{}.output.dense",
}
HUGGINGFACE_QKV = "encoder.layer.{}.attention.attention.{part}"
# ViTMAEForPreTraining has the encoder under `vit.`, and these arrays of the decoder.
HUGGINGFACE_DECODER = {
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed": "decoder.decoder_embed",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}
PARTS = ("query", "key", "value")
# Further names in Hugging Face Transformers: the names of DINOv2, and names that version 5 and
# later use in memory but not in files.
HUGGINGFACE_OTHERS = {
    "register_tokens": "embeddings.register_tokens",
    "blocks.{}.norm1": "encoder.layer.{}.norm1",
    "blocks.{}.norm2": "encoder.layer.{}.norm2",
    "blocks.{}.ls1.gamma": "encoder.layer.{}.layer_scale1.lambda1",
    "blocks.{}.ls2.gamma": "encoder.layer.{}.layer_scale2.lambda1",
    "blocks.{}.attn.proj": "encoder.layer.{}.attention.o_proj",
    "blocks.{}.mlp.fc1": "encoder.layer.{}.mlp.fc1",
    "blocks.{}.mlp.fc2": "encoder.layer.{}.mlp.fc2",
}
PREFIX = re.compile(r"(?:vit|deit|dinov2|dinov2_with_registers)\.")
PROJECTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}


def _renamed(name: str, table: dict[str, str]) -> str | None:
    """Return the new name of an array according to a table of patterns; None without a match."""
    for ours, theirs in table.items():
        pattern = re.escape(ours).replace(r"\{\}", r"(\d+)")
        if match := re.fullmatch(rf"{pattern}((?:\.weight|\.bias)?)", name):
            *indices, suffix = match.groups()
            return theirs.format(*indices) + suffix
    return None


def _decoder(table: dict[str, str]) -> dict[str, str]:
    """Return the name patterns of decoder blocks, derived from those of encoder blocks."""
    return {
        ours.replace("blocks.", "decoder_blocks."): theirs.replace(
            "encoder.layer.", "decoder.decoder_layers."
        )
        for ours, theirs in table.items()
        if ours.startswith("blocks.")
    }


def to_huggingface(arrays: Arrays, *, with_decoder: bool, dinov2: bool = False) -> Arrays:
    """Rename arrays for `ViTModel`, `ViTMAEForPreTraining` or `Dinov2Model` of `transformers`.

    Args:
        arrays: The arrays under MAE's names. Arrays that the target model lacks are dropped.
        with_decoder: Whether to include the decoder, for `ViTMAEForPreTraining`.
        dinov2: Whether to use the names of `Dinov2Model` and `Dinov2WithRegistersModel`. A missing
            mask token is added as zeros, and missing LayerScale parameters as ones.
    """
    names = HUGGINGFACE
    if dinov2:
        names = HUGGINGFACE | HUGGINGFACE_OTHERS
        names["blocks.{}.attn.proj"] = HUGGINGFACE["blocks.{}.attn.proj"]
        width = arrays["cls_token"].shape[-1]
        extra: Arrays = {"mask_token": np.zeros((1, width), np.float32)}
        ones = np.ones(width, np.float32)
        for i in range(len([name for name in arrays if name.endswith(".norm1.weight")])):
            extra |= {f"blocks.{i}.ls{branch}.gamma": ones for branch in (1, 2)}
        if "reg_token" in arrays:
            extra["register_tokens"] = arrays["reg_token"]
        arrays = extra | arrays
    prefix = "vit." if with_decoder else ""
    decoder = HUGGINGFACE_DECODER | _decoder(HUGGINGFACE) if with_decoder else {}
    renamed: Arrays = {}
    for name, array in arrays.items():
        is_decoder = name.startswith(("decoder_", "mask_token"))
        if split := re.fullmatch(r"(decoder_)?blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name):
            if split[1] and not with_decoder:
                continue
            for part, piece in zip(PARTS, np.split(array, 3), strict=True):
                target = HUGGINGFACE_QKV.format(split[2], part=part)
                if split[1]:
                    target = target.replace("encoder.layer.", "decoder.decoder_layers.")
                else:
                    target = prefix + target
                renamed[f"{target}.{split[3]}"] = piece
        elif dinov2 and name == "mask_token":
            renamed["embeddings.mask_token"] = array
        elif is_decoder:
            if theirs := _renamed(name, decoder):
                renamed[theirs] = array
        elif theirs := _renamed(name, names):
            renamed[prefix + theirs] = array
    return renamed


def from_huggingface(arrays: Arrays) -> Arrays:
    """Rename arrays from Hugging Face's names to MAE's. Unknown arrays keep their names."""
    tables = {**HUGGINGFACE, **HUGGINGFACE_DECODER, **_decoder(HUGGINGFACE)}
    back = {theirs: ours for ours, theirs in tables.items()}
    back |= {theirs: ours for ours, theirs in HUGGINGFACE_OTHERS.items()}
    renamed: Arrays = {}
    found = {_file_name(name): name for name in arrays}
    for plain, name in found.items():
        pattern = r"(encoder\.layer|decoder\.decoder_layers)\.(\d+)\.attention\.attention\.query"
        if split := re.fullmatch(rf"{pattern}\.(weight|bias)", plain):
            whole = [arrays[found[plain.replace("query", part)]] for part in PARTS]
            blocks = "blocks" if split[1] == "encoder.layer" else "decoder_blocks"
            renamed[f"{blocks}.{split[2]}.attn.qkv.{split[3]}"] = np.concatenate(whole)
        elif not re.search(r"attention\.attention\.(key|value)\.(weight|bias)$", plain):
            renamed[_renamed(plain, back) or name] = arrays[name]
    return renamed


def _file_name(name: str) -> str:
    """Return the name of a Hugging Face array in weight files, without the model prefix.

    Since version 5 of `transformers`, some parameters have shorter names in memory than in files.
    """
    plain = re.sub(r"^layers\.", "encoder.layer.", PREFIX.sub("", name, count=1))
    for part, projection in PROJECTION.items():
        plain = plain.replace(f".attention.{projection}.", f".attention.attention.{part}.")
    return plain


BIG_VISION_BLOCK = "params/Transformer/encoderblock_{}/"


def to_big_vision(arrays: Arrays, heads: int) -> Arrays:
    """Convert an encoder to the flat npz layout of big_vision with `pool_type="tok"`.

    In this layout, only the patches have position embeddings.

    Args:
        arrays: The arrays under MAE's names.
        heads: The number of attention heads.
    """
    embed = arrays["patch_embed.proj.weight"]
    width = embed.shape[0]
    converted = {
        "params/cls": arrays["cls_token"],
        "params/pos_embedding": arrays["pos_embed"][:, 1:],
        "params/embedding/kernel": embed.transpose(2, 3, 1, 0),
        "params/embedding/bias": arrays["patch_embed.proj.bias"],
        "params/Transformer/encoder_norm/scale": arrays["norm.weight"],
        "params/Transformer/encoder_norm/bias": arrays["norm.bias"],
    }
    depth = len([name for name in arrays if re.fullmatch(r"blocks\.\d+\.norm1\.weight", name)])
    for i in range(depth):
        ours, theirs = f"blocks.{i}.", BIG_VISION_BLOCK.format(i)
        for index, norm in enumerate(("norm1", "norm2")):
            converted[f"{theirs}LayerNorm_{index}/scale"] = arrays[f"{ours}{norm}.weight"]
            converted[f"{theirs}LayerNorm_{index}/bias"] = arrays[f"{ours}{norm}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_0/"
        weights = np.split(arrays[f"{ours}attn.qkv.weight"], 3)
        biases = np.split(arrays[f"{ours}attn.qkv.bias"], 3)
        for part, weight, bias in zip(PARTS, weights, biases, strict=True):
            converted[f"{attention}{part}/kernel"] = weight.T.reshape(width, heads, -1)
            converted[f"{attention}{part}/bias"] = bias.reshape(heads, -1)
        out = arrays[f"{ours}attn.proj.weight"].T.reshape(heads, -1, width)
        converted[f"{attention}out/kernel"] = out
        converted[f"{attention}out/bias"] = arrays[f"{ours}attn.proj.bias"]
        for index, layer in enumerate(("fc1", "fc2")):
            dense = f"{theirs}MlpBlock_0/Dense_{index}/"
            converted[f"{dense}kernel"] = arrays[f"{ours}mlp.{layer}.weight"].T
            converted[f"{dense}bias"] = arrays[f"{ours}mlp.{layer}.bias"]
    return converted


# Parts of array names in google-research/vision_transformer's published weights, and their
# replacements in big_vision's names.
VISION_TRANSFORMER = {
    "Transformer/posembed_input/pos_embedding": "posembed_input/pos_embedding",
    "/LayerNorm_2/": "/LayerNorm_1/",
    "/MlpBlock_3/": "/MlpBlock_0/",
    "/MultiHeadDotProductAttention_1/": "/MultiHeadDotProductAttention_0/",
}


def _big_vision_names(arrays: Arrays) -> Arrays:
    """Return arrays under big_vision's names without `params/`, with separate arrays per block.

    The blocks of a model with ``scan=True`` are stacked in its file. Arrays that the library
    `vision_transformer` names differently are renamed.
    """
    plain: Arrays = {}
    for name, array in arrays.items():
        short = name.removeprefix("params/")
        for theirs, ours in VISION_TRANSFORMER.items():
            short = short.replace(theirs, ours)
        if short.startswith(stacked := "Transformer/encoderblock/"):
            rest = short.removeprefix(stacked)
            plain |= {f"Transformer/encoderblock_{i}/{rest}": one for i, one in enumerate(array)}
        else:
            plain[short] = array
    return plain


def from_big_vision(arrays: Arrays) -> Arrays:
    """Convert an encoder of big_vision to MAE's names. Unknown arrays keep their names, without
    ``params/``.

    Raises:
        UserError: The encoder has no class token.
        KeyError: An array other than the class token is missing.
        ValueError: An array has an unexpected shape.
    """
    rest = _big_vision_names(arrays)
    if "cls" not in rest:
        raise UserError(
            "the big_vision weights have no cls: encoders without a class token (pool_type gap or "
            "map) are not supported"
        )
    if (whole := "posembed_input/pos_embedding") in rest:  # It has a row for the class token.
        positions = rest.pop(whole)
    else:
        patches = rest.pop("pos_embedding")
        positions = np.concatenate([np.zeros_like(patches[:, :1]), patches], axis=1)
    converted = {
        "cls_token": rest.pop("cls"),
        "pos_embed": positions,
        "patch_embed.proj.weight": rest.pop("embedding/kernel").transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": rest.pop("embedding/bias"),
        "norm.weight": rest.pop("Transformer/encoder_norm/scale"),
        "norm.bias": rest.pop("Transformer/encoder_norm/bias"),
    }
    width = converted["norm.bias"].shape[0]
    block_indices = {
        int(match[1])
        for name in rest
        if (match := re.match(r"Transformer/encoderblock_(\d+)/", name))
    }
    for i in sorted(block_indices):
        theirs, ours = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        for index, norm in enumerate(("norm1", "norm2")):
            converted[f"{ours}{norm}.weight"] = rest.pop(f"{theirs}LayerNorm_{index}/scale")
            converted[f"{ours}{norm}.bias"] = rest.pop(f"{theirs}LayerNorm_{index}/bias")
        attention = f"{theirs}MultiHeadDotProductAttention_0/"
        kernels = [rest.pop(f"{attention}{part}/kernel").reshape(width, -1).T for part in PARTS]
        converted[f"{ours}attn.qkv.weight"] = np.concatenate(kernels)
        biases = [rest.pop(f"{attention}{part}/bias").reshape(-1) for part in PARTS]
        converted[f"{ours}attn.qkv.bias"] = np.concatenate(biases)
        out = rest.pop(f"{attention}out/kernel").reshape(-1, width)
        converted[f"{ours}attn.proj.weight"] = out.T
        converted[f"{ours}attn.proj.bias"] = rest.pop(f"{attention}out/bias")
        for index, layer in enumerate(("fc1", "fc2")):
            dense = f"{theirs}MlpBlock_0/Dense_{index}/"
            converted[f"{ours}mlp.{layer}.weight"] = rest.pop(f"{dense}kernel").T
            converted[f"{ours}mlp.{layer}.bias"] = rest.pop(f"{dense}bias")
    return rest | converted


# For each layout, a pattern that identifies it and the conversion to MAE's names.
KNOWN: dict[str, tuple[str, Callable[[Arrays], Arrays]]] = {
    "Hugging Face": (rf"({PREFIX.pattern})?embeddings\.cls_token", from_huggingface),
    "big_vision": (r"(params/)?Transformer/encoder_norm/scale", from_big_vision),
}


def layout_of(arrays: Arrays) -> str | None:
    """Return the layout that the names of the arrays follow, as a key of `KNOWN`, or None."""
    for layout, (pattern, _) in KNOWN.items():
        if any(re.fullmatch(pattern, name) for name in arrays):
            return layout
    return None


def to_mae(arrays: Arrays) -> Arrays:
    """Convert arrays of a known layout, such as big_vision's, to MAE's names and shapes.

    Unknown arrays keep their names; in big_vision's layout, they lose the prefix `params/`.

    Raises:
        UserError: An array that the layout requires is missing, or has an unexpected shape.
    """
    layout = layout_of(arrays)
    if layout is None:
        return arrays
    try:
        return KNOWN[layout][1](arrays)
    except KeyError as error:
        raise UserError(f"the {layout} weights have no {error.args[0]}") from error
    except (ValueError, IndexError) as error:  # Raised by reshape, transpose or concatenate.
        raise UserError(f"the {layout} weights: {one_line(error)}") from error


def heads_of(arrays: Arrays) -> int | None:
    """Return the number of attention heads if the layout stores them as an axis, else None.

    Args:
        arrays: The arrays under their original names, in the layout of big_vision or of can_jax.

    Raises:
        UserError: The number of heads differs between the blocks.
    """
    own = arrays.get("encoder/blocks/layers/attention/qkv/kernel")
    if own is not None:
        return own.shape[3] if own.ndim == 5 else None
    query = re.compile(r"Transformer/encoderblock_\d+/\w+/query/kernel")
    found = {
        array.shape[1] if array.ndim == 3 else None
        for name, array in _big_vision_names(arrays).items()
        if query.fullmatch(name)
    }
    if len(found) > 1:
        raise UserError(
            f"the blocks have different numbers of attention heads: {', '.join(map(str, found))}"
        )
    return next(iter(found), None)
