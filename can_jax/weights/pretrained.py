"""Read a pretrained encoder from a file or folder, with all that has to be known to use it."""

import json
import math
from typing import Any, NamedTuple

from etils import epath

from can_jax.errors import UserError
from can_jax.model.can import SIZES
from can_jax.model.vit import LAYER_NORM_EPS
from can_jax.weights.accounting import grid_of_positions, refuse_unused
from can_jax.weights.descriptions import Facts, facts_beside, file_of_folder
from can_jax.weights.layouts import Arrays
from can_jax.weights.reading import read_contents
from can_jax.weights.torch_layout import encoder_names, encoder_sizes

METADATA = "can_jax"  # the key of a safetensors file under which an export stores its facts
OWN = "encoder/patch_embed/kernel"  # an array of our own layout
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
KNOWN_HEADS = {(size.width, size.depth): size.heads for size in SIZES.values()}


class Weights(NamedTuple):
    """The weights of an encoder.

    Attributes:
        place: The file.
        arrays: Under MAE's names, or under ours.
        facts: What is known of the encoder, by the names of an export's manifest.
        warnings: What differs slightly, or was assumed.
    """

    place: epath.Path
    arrays: Arrays
    facts: Facts
    warnings: tuple[str, ...]


def read_weights(place: epath.Path) -> Weights:
    """Read a file, an export, or a folder of Hugging Face or timm, and what is stated of it.

    Raises:
        UserError: It cannot be read, or is of a model that this encoder does not compute.
    """
    file = file_of_folder(place) if place.is_dir() else place
    contents = read_contents(file)
    facts = facts_beside(file)
    if METADATA in contents.metadata:  # it cannot get lost, as a file beside can
        facts = {**facts, **_metadata(contents.metadata[METADATA], file)}
    if contents.heads is not None:
        facts = {**facts, "heads": contents.heads}
    warnings = []
    epsilon = facts.get("layer_norm_eps", LAYER_NORM_EPS)
    if not isinstance(epsilon, float | int) or not 0 <= epsilon <= 1.001 * LAYER_NORM_EPS:
        raise UserError(
            f"{file}: layer_norm_eps={epsilon}; this encoder computes with {LAYER_NORM_EPS}"
        )
    if epsilon < 0.999 * LAYER_NORM_EPS:
        warnings.append(
            f"{file}: layer_norm_eps is {epsilon}, and {LAYER_NORM_EPS} is used: features may "
            "differ by about 1e-4"
        )
    if contents.layout == "big_vision" and "gelu" not in facts:
        warnings.append(
            f"{file}: big_vision computes GELU by tanh, and the exact one is used: features may "
            "differ by about 2e-4"
        )
    return Weights(file, contents.arrays, facts, tuple(warnings))


def _metadata(text: str, file: epath.Path) -> Facts:
    """Parse the facts that an export of ours stores in a file."""
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise UserError(f"{file}: its metadata {METADATA} is malformed: {text[:60]!r}")
    return facts


def complete(
    weights: Weights,
    heads: Any = None,
    mean: Any = None,
    std: Any = None,
    image_size: tuple[int, int] | None = None,
) -> Weights:
    """Add to the facts what the arrays tell and what the caller states.

    Args:
        weights: As they were read.
        heads: Attention heads. They have to agree with what the files state.
        mean, std: Of each channel of images in [0, 1].
        image_size: (height, width) in pixels, if the arrays hold no positions.

    Raises:
        UserError: Something cannot be known and was not given, or two statements contradict.
    """
    try:
        return _complete(weights, heads, mean, std, image_size)
    except UserError as error:
        raise UserError(f"{weights.place}: {error}") from error


def _complete(
    weights: Weights,
    heads: Any,
    mean: Any,
    std: Any,
    image_size: tuple[int, int] | None,
) -> Weights:
    arrays, stated = weights.arrays, weights.facts
    facts = _sizes(arrays, stated)
    if OWN not in arrays:
        refuse_unused(arrays, encoder_names(facts["depth"]))
    if OWN in arrays:
        size = stated.get("image_size") or image_size
        if size is None:
            raise UserError(f"the image size is not known: give it ({_how('image_size')})")
        facts["image_size"] = list(size)
    elif "pos_embed" in arrays:
        grid = grid_of_positions(arrays["pos_embed"], facts["width"])
        facts["image_size"] = [side * facts["patch_size"] for side in grid]
    else:
        raise UserError(
            "there is no pos_embed, so its positions are unknown: give a file that holds them"
        )
    facts["heads"] = _heads(facts["width"], facts["depth"], stated.get("heads"), heads)
    guessed = []
    for name, given in (("mean", mean), ("std", std)):
        value = stated.get(name) if given is None else given
        if value is None:
            if facts["channels"] != 3 or name in stated:
                raise UserError(f"{name} of the channels is not known: give it ({_how(name)})")
            value = IMAGENET[name]
            guessed.append(name)
        facts[name] = channel_values(name, value, facts["channels"])
    warnings = weights.warnings
    if guessed:
        warnings += (
            f"{weights.place} does not state {' and '.join(guessed)} of its images: ImageNet's "
            f"{' and '.join(str(IMAGENET[name]) for name in guessed)} are used; to give others: "
            f"{_how(guessed[0])}",
        )
    return weights._replace(facts={**stated, **facts}, warnings=warnings)


def _how(name: str) -> str:
    """Return the ways in which a user states a fact."""
    key = "data.image_size" if name == "image_size" else f"model.{name}"
    return f"can_jax.load(path, {name}=…), --config.{key}=…"


def _sizes(arrays: Arrays, stated: Facts) -> Facts:
    """Return the sizes that the arrays have, which must be those that the files state."""
    if OWN in arrays:
        depth, width = arrays["encoder/blocks/layers/attention_norm/scale"].shape
        facts = {"width": width, "depth": depth}
        for name in ("patch_size", "channels"):
            if name not in stated:
                raise UserError(f"{name} is not known: give the folder of the export instead")
            facts[name] = stated[name]
    else:
        facts = encoder_sizes(arrays)._asdict()
    for name, value in facts.items():
        if stated.get(name, value) != value:
            raise UserError(
                f"{name} of the arrays is {value}, and {stated[name]} is stated beside them"
            )
    return facts


def _heads(width: int, depth: int, stated: Any, given: Any) -> int:
    """Return the attention heads: as stated or given, else those of a known size of ViT."""
    if given is not None and stated is not None and given != stated:
        raise UserError(f"heads={given}: the weights are of {stated} heads")
    heads = given if stated is None else stated
    if heads is None:
        heads = KNOWN_HEADS.get((width, depth))
    if heads is None:
        raise UserError(
            f"the number of attention heads is not known of a ViT of width {width} and depth "
            f"{depth}: give it ({_how('heads')})"
        )
    if type(heads) is not int or heads < 1 or width % heads:
        raise UserError(f"heads={heads!r} is no number of heads for the width {width}")
    return heads


def channel_values(name: str, value: Any, channels: int) -> list[float]:
    """Check a mean or deviation and return it for each channel of images in [0, 1]."""
    values = list(value) if isinstance(value, list | tuple) else [value] * channels
    if len(values) != channels:
        raise UserError(f"{name}={value} has {len(values)} values, the encoder {channels} channels")
    for one in values:
        number = isinstance(one, int | float) and math.isfinite(one)
        if not number or not 0 <= one <= 1 or (name == "std" and one == 0):
            raise UserError(f"{name}={value}: values are of images in [0, 1], not of bytes")
    return [float(one) for one in values]
