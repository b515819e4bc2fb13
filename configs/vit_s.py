"""CAN, ViT-S/16 at 224 px, for one GPU.

    can-jax train --config=vit_s --data=/data/images --for=2d
    python -m can_jax.main --config=configs/vit_s.py --workdir=runs/vit_s \
        --config.data.path=/data/images

With `--data` the batch, the microbatches and the remat policy follow from the card's memory, and
the learning rate from the batch. The decoder has half of the paper's width and depth, since the
paper's decoder would need more memory than this encoder. For some hundred thousand images, 300
epochs are common.

Hardware: one GPU; `docs/one_gpu.md` has the batch and the memory by card.
Result: not measured; the paper has no ViT-S.
"""

from ml_collections import ConfigDict

from can_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.batch_size = 512
    config.total_epochs = 300
    config.data.update(source="folder", image_size=224)
    config.model.update(size="S", remat="dots")
    config.model.decoder.update(width=256, depth=4, heads=8)
    config.model.projector.hidden = 2048
    config.figures.every_steps = 5000
    return config
