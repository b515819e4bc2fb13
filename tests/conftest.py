import jax
import pytest
from ml_collections import ConfigDict

from can_jax.config import default_config, resolve

# Eight devices on one CPU: what holds on a mesh is tested on a mesh.
jax.config.update("jax_num_cpu_devices", 8)


def small_config(**changes) -> ConfigDict:
    """A tiny CAN in float32; keyword `model__depth=3` sets `config.model.depth`."""
    config = default_config()
    config.batch_size = 8
    config.total_steps = 4
    config.data.update(source="shapes", image_size=16, shapes_count=64)
    config.model.update(
        size="Ti", width=24, depth=2, heads=3, patch_size=4, dtype="float32", scan=False
    )
    config.model.decoder.update(width=16, depth=1, heads=2)
    config.model.projector.update(hidden=32, outputs=16)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
    for path, value in changes.items():
        *blocks, key = path.split("__")
        block = config
        for name in blocks:
            block = block[name]
        block[key] = value
    return resolve(config)


@pytest.fixture
def config() -> ConfigDict:
    return small_config()
