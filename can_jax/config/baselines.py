"""MAE and SimCLR as changes of a recipe for CAN: what has no weight is not built."""

from typing import Any

from ml_collections import ConfigDict

from can_jax.augment.presets import PRESETS

METHODS: dict[str, dict[str, Any]] = {
    "can": {},
    "mae": {
        **{f"augment.{name}": value for name, value in PRESETS["mae"].items()},
        "model.mask_ratio": 0.75,
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
    """A copy of a recipe's configuration with keys such as ``model.mask_ratio`` set."""
    config = ConfigDict(config.copy_and_resolve_references())
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config
