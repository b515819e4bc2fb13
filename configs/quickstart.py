"""CAN on drawn shapes, in a few minutes on a laptop.

    python -m can_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from can_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.batch_size = 256
    config.total_steps = 600
    config.log_every_steps = 25
    config.data.update(source="shapes", image_size=48)
    config.augment.update(crop_area=(0.4, 1.0), blur_sigma=(0.1, 1.0))
    config.model.update(
        size="Ti", width=128, depth=4, heads=4, patch_size=8, dtype="float32", scan=False
    )
    config.model.decoder.update(width=64, depth=2, heads=4)
    config.model.projector.update(hidden=256)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=50)
    config.checkpoint.every_steps = 200
    config.probe.update(every_steps=150, bank=4000, queries=2000)
    config.figures.every_steps = 300
    return config
