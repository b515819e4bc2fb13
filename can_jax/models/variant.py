"""The options of a Vision Transformer, in which encoders of other libraries differ from MAE's."""

import dataclasses
from typing import Any

from can_jax.utils.errors import UserError
from can_jax.utils.nearest import nearest
from can_jax.utils.settings import Choice, Key, Number, Several, Switch, Whole, refuse

LAYER_NORM_EPS = 1e-6

OPTIONS: dict[str, Key] = {
    "positions": Key(
        "sincos", Choice(("sincos", "learned")),
        "The positions of the patches: MAE's fixed table, or a parameter.",
    ),
    "position_grid": Key(
        None, Several(Whole(1, 2**15), length=2),
        "The (height, width) of the grid of learned positions, which are resized to any other; by "
        "default the grid of the images.",
    ),
    "registers": Key(
        0, Whole(0, 1024), "The number of register tokens (arXiv 2309.16588), which are no outputs."
    ),
    "layer_scale": Key(
        None, Number(0, 1e3),
        "The initial factor of each channel of each branch (LayerScale, arXiv 2103.17239); by "
        "default there is none.",
    ),
    "qk_norm": Key(
        False, Switch(), "Whether LayerNorms normalize queries and keys (arXiv 2302.05442)."
    ),
    "pre_norm": Key(False, Switch(), "Whether a LayerNorm precedes the blocks, as in CLIP."),
    "norm": Key(
        "tokens", Choice(("tokens", "pooled")),
        "The input of the final LayerNorm: each token, or the mean of the patch tokens (fc_norm).",
    ),
    "epsilon": Key(LAYER_NORM_EPS, Number(above=0, high=1e-2), "The epsilon of the LayerNorms."),
    "gelu": Key("exact", Choice(("exact", "tanh")), "The form of GELU."),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Variant:
    """The options of an encoder, which `OPTIONS` documents. The defaults are those of MAE."""

    positions: str = "sincos"
    position_grid: tuple[int, int] | None = None
    registers: int = 0
    layer_scale: float | None = None
    qk_norm: bool = False
    pre_norm: bool = False
    norm: str = "tokens"
    epsilon: float = LAYER_NORM_EPS
    gelu: str = "exact"


PLAIN = Variant()


def variant_of(model: Any) -> Variant:
    """Return the options of a Vision Transformer from the config block `model`.

    Raises:
        UserError: An option is unknown, or has a value that is not allowed.
    """
    options = dict(model.backbone_options)
    for name, value in options.items():
        if name not in OPTIONS:
            near = nearest(name, list(OPTIONS))
            hint = f"did you mean {near}?" if near else f"its options are {', '.join(OPTIONS)}"
            raise UserError(
                f"config.model.backbone_options={name}: the backbone vit has no such option; {hint}"
            )
        refuse(f"model.backbone_options.{name}", value, OPTIONS[name])
    if options.get("position_grid") is not None:
        options["position_grid"] = tuple(options["position_grid"])
    return Variant(**options)
