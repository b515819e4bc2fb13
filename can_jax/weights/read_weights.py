"""Reading a pretrained encoder's weights, with the facts that are required to use them."""

import json
import math
from numbers import Integral
from typing import Any, NamedTuple

from etils import epath

from can_jax.models.backbones import SIZES
from can_jax.models.variant import PLAIN
from can_jax.utils.errors import UserError
from can_jax.weights.accounting import grid_of_positions, refuse_unused
from can_jax.weights.descriptions import file_of_folder, stated_beside, stated_by_export
from can_jax.weights.layouts import Arrays
from can_jax.weights.library_configs import FORMS, TANH, Facts, Stated, merged
from can_jax.weights.reading import Contents, read_contents
from can_jax.weights.torch_layout import encoder_names, encoder_sizes
from can_jax.weights.variants import COMPARED, plain_arrays

METADATA = "can_jax"  # The metadata key under which an export stores its facts.
OWN = "encoder/patch_embed/kernel"  # An array that only can_jax's layout has.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
KNOWN_HEADS = {(size.width, size.depth): size.heads for size in SIZES.values()}


class Weights(NamedTuple):
    """The weights of an encoder.

    Attributes:
        place: The path of the weight file.
        arrays: The arrays under MAE's names or can_jax's names.
        facts: The known facts about the encoder, such as ``heads``, by their names in an export's
            manifest. The fact ``options`` holds the required options of `can_jax.models.variant`.
        keys: For each fact, the file and key that state the fact, as shown in messages.
        warnings: Warnings to print about assumptions, and about weights that are not used.
    """

    place: epath.Path
    arrays: Arrays
    facts: Facts
    keys: dict[str, str]
    warnings: tuple[str, ...]


def read_weights(path: epath.Path) -> Weights:
    """Read an encoder's weights, and the facts about the encoder in the weight file and its folder.

    Args:
        path: The path of a weight file, an export, or a folder of Hugging Face or timm.

    Raises:
        UserError: A file cannot be read, or the model has a structure that is not supported.
    """
    file = file_of_folder(path) if path.is_dir() else path
    try:
        beside = stated_beside(file)  # An unsupported model is refused before its arrays are read.
        contents = read_contents(file)
        facts, keys = stated = merged(*_stated_inside(contents), beside)
        if OWN in contents.arrays:
            arrays, options = contents.arrays, facts.get("options", {})
        else:
            if contents.layout == "big_vision":  # It uses tanh unless a manifest states otherwise.
                stated = Stated({"gelu": TANH} | facts, {"gelu": "big_vision"} | keys)
            arrays, options = plain_arrays(contents.arrays, stated)
    except UserError as error:
        located = str(error).startswith(str(file.parent))  # The error names a file already.
        raise UserError(str(error) if located else f"{file}: {error}") from error
    warnings = tuple(f"{file}: {note}" for note in contents.notes)
    facts = {name: fact for name, fact in facts.items() if name not in COMPARED}
    return Weights(file, arrays, facts | {"options": options}, keys, warnings)


def _stated_inside(contents: Contents) -> list[Stated]:
    """Return the facts that the arrays and the metadata of a weight file state."""
    parts = []
    if contents.heads is not None:
        heads = {"heads": contents.heads}
        parts.append(Stated(heads, {"heads": "heads in the shapes of the arrays"}))
    if METADATA in contents.metadata:  # Unlike a separate file, metadata cannot get lost.
        text = contents.metadata[METADATA]
        try:
            facts = json.loads(text)
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            raise UserError(f"the metadata {METADATA} is malformed: {text[:60]!r}")
        parts.append(stated_by_export(facts, f"metadata {METADATA}: "))
    return parts


def complete(
    weights: Weights,
    heads: Any = None,
    mean: Any = None,
    std: Any = None,
    image_size: tuple[int, int] | None = None,
    gelu: str | None = None,
) -> Weights:
    """Add the facts that the arrays determine and those that the caller states.

    Args:
        weights: The result of `read_weights`.
        heads: The number of attention heads; must equal the number that the files state, if any.
        mean, std: The mean and standard deviation of images in [0, 1], each as one number or as one
            number per channel.
        image_size: The size (height, width) in pixels, used only if neither the position embedding
            nor a file determines the size.
        gelu: The form of GELU, a key of `FORMS`; must equal the form that the files state, if any.

    Raises:
        UserError: A required fact is unknown, or a stated fact contradicts another fact or the
            arrays.
    """
    try:
        return _complete(_with_gelu(weights, gelu), heads, mean, std, image_size)
    except UserError as error:
        raise UserError(f"{weights.place}: {error}") from error


def _with_gelu(weights: Weights, given: str | None) -> Weights:
    """Return weights whose options have the form of GELU that the caller or the files state.

    An encoder with a LayerNorm before its blocks, such as CLIP's, can have the exact form or
    QuickGELU. The arrays do not show the form of GELU, so the caller or a file must state it.
    """
    options, stated = weights.facts["options"], weights.facts.get("gelu") is not None
    ours = options.get("gelu", PLAIN.gelu)
    if given is not None and given not in FORMS:
        raise UserError(f"gelu={given!r}: give one of {', '.join(FORMS)}")
    if stated and given not in (None, ours):
        raise UserError(
            f"gelu={given}: the weights have gelu={ours} ({weights.keys['gelu']}); omit gelu"
        )
    if given is None and not stated and options.get("pre_norm"):
        if reason := weights.keys.get("gelu"):
            raise UserError(
                f"{reason}: set gelu to quick as in the training, or to exact as in timm "
                f"({_how('gelu')})"
            )
        raise UserError(
            "no file states the activation of this encoder, which has a LayerNorm before its "
            "blocks as in CLIP. Use a folder with config.json, or set gelu: quick for the models "
            f"of OpenAI, MetaCLIP and DFN, exact for those of OpenCLIP ({_how('gelu')})"
        )
    if stated or given is None:
        return weights
    others = {name: option for name, option in options.items() if name != "gelu"}
    options = others | ({"gelu": given} if given != PLAIN.gelu else {})
    return weights._replace(facts=weights.facts | {"options": options, "gelu": FORMS[given]})


def _complete(
    weights: Weights,
    heads: Any,
    mean: Any,
    std: Any,
    image_size: tuple[int, int] | None,
) -> Weights:
    arrays, stated = weights.arrays, weights.facts
    facts = sizes(weights)
    if OWN not in arrays:
        refuse_unused(arrays, encoder_names(facts["depth"], stated["options"]))
        contract = arrays.get("blocks.0.mlp.fc2.weight")
        if contract is not None and contract.shape != (facts["width"], 4 * facts["width"]):
            raise UserError(
                f"blocks.0.mlp.fc2.weight has shape {contract.shape}: an MLP without a gate, with "
                f"{4 * facts['width']} hidden units (4 times the width of the encoder), is required"
            )
    if "image_size" not in facts:
        if OWN not in arrays:
            raise UserError(
                "there is no pos_embed, so the positions are unknown: use a file with pos_embed"
            )
        size = stated.get("image_size") or image_size
        if size is None:
            raise UserError(f"the image size is not known: set it ({_how('image_size')})")
        facts["image_size"] = list(size)
    facts["heads"] = _heads(facts["width"], facts["depth"], weights, heads)
    guessed = []
    for name, given in (("mean", mean), ("std", std)):
        value = stated.get(name) if given is None else given
        key = name if given is not None else weights.keys.get(name, name)
        if value is None:
            if facts["channels"] != 3 or name in stated:
                why = weights.keys.get(name, f"{name} of the channels is not known")
                raise UserError(
                    f"{why}: set mean and std, computed on pixels in [0, 1] ({_how(name)})"
                )
            value = IMAGENET[name]
            guessed.append(name)
        facts[name] = channel_values(key, value, facts["channels"])
    warnings = weights.warnings
    if guessed:
        warnings += (
            f"{weights.place} does not state {' and '.join(guessed)} of its images, so ImageNet's "
            f"{' and '.join(str(IMAGENET[name]) for name in guessed)} are used; to change them: "
            f"{_how(guessed[0])}",
        )
    return weights._replace(facts={**stated, **facts}, warnings=warnings)


def _how(name: str) -> str:
    """Return the function argument, config key and flag that set a fact, for messages."""
    key = "data.image_size" if name == "image_size" else f"model.{name}"
    flag = "" if name == "image_size" else f", or --{name}=… of an export"
    return f"can_jax.load(path, {name}=…), --config.{key}=…{flag}"


def sizes(weights: Weights) -> Facts:
    """Return the sizes of an encoder, read from the shapes of its arrays.

    Raises:
        UserError: A file states another size than the arrays have, or the arrays are not those of a
            ViT.
    """
    arrays, stated = weights.arrays, weights.facts
    if OWN in arrays:
        depth, width = arrays["encoder/blocks/layers/attention_norm/scale"].shape
        facts: Facts = {"width": width, "depth": depth}
        for name in ("patch_size", "channels"):
            if name not in stated:
                raise UserError(
                    f"no file states {name}: give the folder of the export with all its files"
                )
            facts[name] = stated[name]
    else:
        facts = encoder_sizes(arrays)._asdict()
    actual = dict(facts)
    if (name := "blocks.0.mlp.fc1.bias") in arrays:
        actual["mlp_width"] = arrays[name].size
    _refuse_contradictions(weights, actual)  # Positions depend on these sizes.
    if "pos_embed" in arrays:
        options = stated.get("options", {})
        grid = options.get("position_grid") or grid_of_positions(
            arrays["pos_embed"], facts["width"]
        )
        facts["image_size"] = [side * facts["patch_size"] for side in grid]
        _refuse_contradictions(weights, facts)
    return facts


def _refuse_contradictions(weights: Weights, actual: Facts) -> None:
    """Raise `UserError` for a stated size that differs from the actual size of the arrays."""
    for name, value in actual.items():
        stated = weights.facts.get(name, value)
        if stated != value or isinstance(stated, bool):
            what = "the arrays hold positions for" if name == "image_size" else "the arrays have"
            shown = "x".join(map(str, value)) if name == "image_size" else value
            raise UserError(f"{weights.keys[name]}={stated!r}, but {what} {shown}")


def _heads(width: int, depth: int, weights: Weights, given: Any) -> int:
    """Return the number of attention heads: the stated one, or that of the known ViT of this
    size."""
    stated = weights.facts.get("heads")
    if given is not None and stated is not None and given != stated:
        raise UserError(f"heads={given}: the weights have {stated} heads; omit heads")
    heads = given if stated is None else stated
    if heads is None:
        heads = KNOWN_HEADS.get((width, depth))
    if heads is None:
        raise UserError(
            f"the number of attention heads of a ViT of width {width} and depth {depth} is not "
            f"known: set it ({_how('heads')})"
        )
    whole = isinstance(heads, Integral) and not isinstance(heads, bool)
    if not whole or heads < 1 or width % int(heads):
        key = "heads" if stated is None else weights.keys["heads"]
        raise UserError(
            f"{key}={heads!r} is not a number of heads for the width {width}: it must be a "
            "positive integer that divides the width"
        )
    return int(heads)


def channel_values(name: str, value: Any, channels: int) -> list[float]:
    """Validate a mean or standard deviation, and return it for each channel.

    Args:
        name: The name of the value in messages, ending in ``mean`` or ``std``.
        value: One number, or one for each channel, for images in [0, 1].
        channels: The number of channels.

    Raises:
        UserError: The value has a wrong length, is not finite, is outside [0, 1], or is a standard
            deviation of 0.
    """
    values = list(value) if isinstance(value, list | tuple) else [value] * channels
    if len(values) != channels:
        raise UserError(
            f"{name}={value} has {len(values)} values, but the encoder has {channels} channels"
        )
    for one in values:
        is_number = isinstance(one, float | int) and not isinstance(one, bool)
        if not is_number or not math.isfinite(one):
            raise UserError(f"{name}={value}: {one!r} is not a finite number")
        if name.endswith("std") and one == 0:
            raise UserError(f"{name}={value}: a channel cannot have a standard deviation of 0")
        if not 0 <= one <= 1:
            raise UserError(
                f"{name}={value}: the values must be for pixels from 0 to 1, not from 0 to 255"
            )
    return [float(one) for one in values]
