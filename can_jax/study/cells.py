"""The methods that studies compare, and variants of CAN's denoising branch.

A cell is a dict of changes to a CAN recipe, by dotted key. Each value of
`can_jax.config.baselines.METHODS` is also a cell.
"""

from typing import Any

from can_jax.config.baselines import METHODS, PAPER_NOISE

# MAE's own augmentation has no color jitter; here MAE gets that of the other methods.
COLORS = {"augment.jitter": 0.8, "augment.grayscale": 0.2}
MENDED = {
    "noise.target": "normalized",
    "model.decoder.noise_output": True,
    "model.decoder.zero_output": True,
    "model.patch_embed": "linear",
}
WHITENED = {"model.patch_embed": "whitened"}
WITHOUT_NOISE = {
    "noise.sigma_max": 0.0,
    "objective.denoising.weight": 0.0,
    "model.decoder.zero_output": False,
}
COMBINED = METHODS["can_koleo"] | WITHOUT_NOISE | WHITENED

CELLS: dict[str, dict[str, Any]] = {
    "can_literal": PAPER_NOISE,
    "can_without_noise": WITHOUT_NOISE,
    "mae": METHODS["mae"] | COLORS,
    "simclr": METHODS["simclr"],
    "can_mended": MENDED,
    "can_mended_whitened": MENDED | WHITENED,
    "can_mended_dct": MENDED | {"model.patch_embed": "dct"},
    # The embedding and the zero output without the noise branch.
    "can_without_noise_whitened": WITHOUT_NOISE | WHITENED,
    "can_without_noise_zero_output": WITHOUT_NOISE | {"model.decoder.zero_output": True},
    "mae_zero_output": METHODS["mae"] | COLORS | {"model.decoder.zero_output": True},
    "simclr_whitened": METHODS["simclr"] | WHITENED,
    # Other forms of the mended branch.
    "can_mended_unit_whitened": MENDED | WHITENED | {"noise.target": "unit"},
    "can_mended_sigma_022_whitened": MENDED | WHITENED | {"noise.sigma_max": 0.22},
    "can_mended_sigma_1_whitened": MENDED | WHITENED | {"noise.sigma_max": 1.0},
    "can_mended_sigma_1": MENDED | {"noise.sigma_max": 1.0},
    "can_mended_sigma_03": MENDED | {"noise.sigma_max": 0.3},
    # Combinations of what raises the accuracy of CAN in short runs.
    "can_koleo_without_noise_whitened": COMBINED,
    "can_koleo_without_noise_whitened_mask_025": COMBINED | {"model.mask_ratio": 0.25},
}
