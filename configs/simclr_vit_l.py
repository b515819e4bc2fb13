"""SimCLR, ViT-L/16 at 224 px: CAN without masks, noise and decoder.

    python -m can_jax.main --config=configs/simclr_vit_l.py --workdir=runs/simclr_vit_l \
        --config.data.path=/data/images

Two whole views and the contrastive loss of arXiv 2002.05709; no decoder is built.

Hardware: 738 GFLOP an image and step, 1.71 times CAN's; 800 epochs of ImageNet-1k are 7.6e20 FLOP,
on 64 H100 at 50 % of their peak about seven hours (arithmetic, not a measurement).
Result: the CAN paper reports 73.4 % linear probe and 85.5 % fine-tuning on ImageNet-1k, pretrained
on JFT-300M. Not reproduced here.
"""

from ml_collections import ConfigDict

from can_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.total_epochs = 800
    config.data.update(source="folder", image_size=224)
    config.model.update(size="L", mask_ratio=0.0)
    config.objective.contrastive.weight = 1.0
    config.objective.reconstruction.weight = 0.0
    config.objective.denoising.weight = 0.0
    config.noise.sigma_max = 0.0
    return config
