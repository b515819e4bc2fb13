"""Architecture options of the Vision Transformer, in which encoders of other libraries differ from
the encoder of MAE."""

import dataclasses
from typing import Any

from can_jax.utils.errors import UserError
from can_jax.utils.nearest import nearest
from can_jax.utils.settings import Choice, Key, Number, Several, Switch, Whole, refuse

LAYER_NORM_EPS = 1e-6

OPTIONS: dict[str, Key] = {
    "positions": Key(
        "sincos", Choice(("sincos", "learned")),
        "The position embeddings of the patches: fixed sin-cos as in MAE, or learned.",
    ),
    "position_grid": Key(
        None, Several(Whole(1, 2**15), length=2),
        "The (height, width) of the grid of learned position embeddings, in patches; by default, "
        "the grid of the images. The embeddings are resized for images with another grid.",
    ),
    "registers": Key(
        0, Whole(0, 1024),
        "The number of register tokens (arXiv 2309.16588), which are dropped from the output.",
    ),
    "layer_scale": Key(
        None, Number(0, 1e3),
        "The initial value of the LayerScale parameters (arXiv 2103.17239). By default there is no "
        "LayerScale.",
    ),
    "qk_norm": Key(
        False, Switch(), "Whether to apply a LayerNorm to queries and keys (arXiv 2302.05442)."
    ),
    "pre_norm": Key(False, Switch(), "Whether to apply a LayerNorm before the blocks, as in CLIP."),
    "norm": Key(
        "tokens", Choice(("tokens", "pooled")),
        "The input of the final LayerNorm: each token, or the pooled embedding (timm's fc_norm).",
    ),
    "epsilon": Key(LAYER_NORM_EPS, Number(above=0, high=1e-2), "The epsilon of all LayerNorms."),
    "gelu": Key(
        "exact", Choice(("exact", "tanh", "quick")),
        "The GELU activation: exact, or approximated by tanh or by a sigmoid (QuickGELU).",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Variant:
    """The architecture options of a ViT encoder, which `OPTIONS` documents. The default values give
    the architecture of MAE."""

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
    """Read the architecture options of a Vision Transformer from the config block `model`.

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
