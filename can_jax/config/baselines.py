"""The baselines MAE and SimCLR, as changes to a CAN recipe; zero-weight branches are not built."""

import copy
from typing import Any

from ml_collections import ConfigDict

from can_jax.augment.presets import PRESETS

# The denoising branch as the paper has it; docs/method.md says how the default differs and why.
PAPER_NOISE: dict[str, Any] = {
    "noise.target": "scaled",
    "model.decoder.noise_output": False,
    "model.decoder.zero_output": False,
    "model.patch_embed": "linear",
}

METHODS: dict[str, dict[str, Any]] = {
    "can": {},
    "mae": {
        **{f"augment.{name}": value for name, value in PRESETS["mae"].items()},
        "model.mask_ratio": 0.75,
        "model.decoder.zero_output": False,  # Xavier, as MAE has it
        "noise.sigma_max": 0.0,
        "objective.contrastive.weight": 0.0,
        "objective.reconstruction.weight": 1.0,
        "objective.denoising.weight": 0.0,
    },
    "simclr": {
        "model.mask_ratio": 0.0,
        "noise.sigma_max": 0.0,
        "objective.contrastive.weight": 1.0,
        "objective.reconstruction.weight": 0.0,
        "objective.denoising.weight": 0.0,
    },
}


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """Return a copy of a recipe's configuration with changes to dotted keys.

    Keys keep their types, so the command line can set those of the copy that are None.
    """
    config = copy.deepcopy(config)
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config
