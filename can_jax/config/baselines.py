"""MAE, SimCLR and other methods, each defined as changes to the configuration of CAN.

The changes cover a method's losses, network, masking, noise and augmentation, where these differ
from CAN. Optimizer settings are left to recipes, except for the moving average that latent targets
require. The settings of the papers are listed in docs/objectives.md, with the differences from the
authors' code. Branches with zero weight are not built.
"""

import copy
from typing import Any

from ml_collections import ConfigDict

from can_jax.augment.presets import PRESETS

# The paper's form of the denoising branch; docs/method.md states how the default differs and why.
PAPER_NOISE: dict[str, Any] = {
    "noise.target": "scaled",
    "model.decoder.noise_output": False,
    "model.decoder.zero_output": False,
    "model.patch_embed": "linear",
}

# Unmasked views without noise, and none of CAN's losses, for methods without a decoder.
JOINT: dict[str, Any] = {
    "model.mask_ratio": 0.0,
    "noise.sigma_max": 0.0,
    "objective.contrastive.weight": 0.0,
    "objective.reconstruction.weight": 0.0,
    "objective.denoising.weight": 0.0,
}
SIMCLR = JOINT | {"objective.contrastive.weight": 1.0}
MAE: dict[str, Any] = {
    **{f"augment.{name}": value for name, value in PRESETS["mae"].items()},
    "model.mask_ratio": 0.75,
    "model.decoder.zero_output": False,  # Xavier initialization, as in MAE
    "noise.sigma_max": 0.0,
    "objective.contrastive.weight": 0.0,
    "objective.reconstruction.weight": 1.0,
    "objective.denoising.weight": 0.0,
}
# The decoder predicts latents instead of pixels. The teacher is the encoder's moving average.
LATENTS: dict[str, Any] = {
    "objective.reconstruction.weight": 0.0,
    "objective.latents.weight": 1.0,
    "optimizer.ema_decay": 0.999,
}
# The projector of chingyaoc/DCL and joshr17/HCL.
TWO_LAYERS = {"model.projector.layers": 2, "model.projector.hidden": 512}
WIDE = {"model.projector.hidden": 8192, "model.projector.outputs": 8192}

METHODS: dict[str, dict[str, Any]] = {
    "can": {},
    "mae": MAE,
    "simclr": SIMCLR,
    "dcl": SIMCLR | {"objective.contrastive.decoupled": True},
    "debiased": SIMCLR
    | TWO_LAYERS
    | {"objective.contrastive.positive_prior": 0.1, "objective.contrastive.temperature": 0.5},
    "hard_negatives": SIMCLR
    | TWO_LAYERS
    | {
        "objective.contrastive.positive_prior": 0.1,
        "objective.contrastive.hardness": 1.0,
        "objective.contrastive.temperature": 0.5,
    },
    "siglip": JOINT | {"objective.siglip.weight": 1.0},
    "vicreg": JOINT | WIDE | {"objective.vicreg.weight": 1.0},
    "barlow_twins": JOINT | WIDE | {"objective.barlow_twins.weight": 1.0},
    "mec": JOINT
    | {
        "objective.mec.weight": 1.0,
        "model.projector.hidden": 2048,
        "model.projector.outputs": 2048,
        "model.projector.final_norm": True,
    },
    "densecl": SIMCLR
    | {
        "objective.contrastive.weight": 0.5,
        "objective.contrastive.temperature": 0.2,
        "objective.dense.weight": 0.5,
        "objective.dense.hidden": 2048,
        "model.projector.layers": 2,
        "model.projector.hidden": 2048,
        "model.projector.batch_norm": False,
    },
    "latents": MAE | LATENTS,
    "can_latents": LATENTS | {"objective.latents.weight": 0.67},  # the weight of CAN's pixel loss
    "can_koleo": {"objective.koleo.weight": 0.1},  # DINOv2's weight
    "simclr_disentangled": SIMCLR | {"objective.disentangle.weight": 1.0},
}


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """Return a copy of a recipe's configuration with changes to dotted keys.

    A key that a change sets to None keeps its type, and the command line can still set the key.
    """
    config = copy.deepcopy(config)
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config
