"""CAN with a narrow ViT, for a CPU or a first look at any images.

    can-jax train --data=/data/photos --for=20m
    python -m can_jax.main --config=configs/small.py --workdir=runs/small \
        --config.data.path=/data/photos

`can-jax train --data` selects this recipe on a CPU, and adapts the sizes of views and patches to
the images. As in `configs/cifar10.py`, the contrastive loss has a larger weight and the learning
rate is higher than in the paper, so that a run of minutes shows an effect.

Hardware: two CPU cores; 370 images/s at 32 px.
Result: not measured. Width, depth, heads, decoder and projector are those of `configs/cifar10.py`.
"""

from ml_collections import ConfigDict

from can_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.batch_size = 128
    config.total_epochs = 10
    config.log_every_steps = 20
    config.data.update(source="folder", image_size=64)
    config.augment.update(crop_area=(0.3, 1.0), blur=0.0)
    config.model.update(
        size="Ti", width=96, depth=4, heads=3, patch_size=8, dtype="float32", scan=False
    )
    config.model.decoder.update(width=64, depth=1, heads=4)
    config.model.projector.update(layers=2, hidden=512)
    config.objective.contrastive.weight = 1.0
    config.optimizer.update(learning_rate=2e-3, warmup_share=0.1)
    return config
