"""Presets of `config.augment`, as dicts of the values that differ from the defaults.

The default values of `config.augment` are the preset ``can``. A recipe applies another preset, such
as ``mae``, with ``config.augment.update(PRESETS["mae"])``.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "can": {},
    # arXiv 2111.06377: one view, cropped and flipped.
    "mae": {"views": 1, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0},
    # arXiv 2002.05709, appendix A: crops may be smaller, and the jitter is twice as strong.
    "simclr": {
        "crop_area": (0.08, 1.0),
        "brightness": 0.8,
        "contrast": 0.8,
        "saturation": 0.8,
        "hue": 0.2,
    },
}
