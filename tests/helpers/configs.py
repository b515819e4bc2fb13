"""Tiny configurations."""

from ml_collections import ConfigDict

from can_jax.config.resolve import default_config, resolve

COLOURS = {"augment__jitter": 0.8, "augment__grayscale": 0.2, "augment__blur": 0.5}


def small_config(**changes) -> ConfigDict:
    """A tiny CAN in float32; keyword `model__depth=3` sets `config.model.depth`.

    Colours are left alone, which compiles much faster; `COLOURS` turns them on.
    """
    config = default_config()
    config.batch_size = 8
    config.total_steps = 4
    config.data.update(source="shapes", image_size=16, shapes_count=64)
    config.model.update(
        size="Ti", width=24, depth=1, heads=3, patch_size=4, dtype="float32", scan=False
    )
    config.model.decoder.update(width=16, depth=1, heads=2)
    config.model.projector.update(hidden=32, outputs=16)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
    config.augment.update(jitter=0.0, grayscale=0.0, blur=0.0)
    for path, value in changes.items():
        *blocks, key = path.split("__")
        block = config
        for name in blocks:
            block = block[name]
        block[key] = value
    return resolve(config)
