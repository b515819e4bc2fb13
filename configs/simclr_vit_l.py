"""SimCLR, ViT-L/16 at 224 px: CAN without masks, noise and decoder.

    python -m can_jax.main --config=configs/simclr_vit_l.py --workdir=runs/simclr_vit_l \
        --config.data.path=/data/imagenet

A step sees two unmasked views, with the contrastive loss of arXiv 2002.05709; no decoder is built.
As in google-research/simclr, the projection head ends in a BatchNorm without bias, and the loss is
the sum over both directions. The three layers of the head and the color augmentation are those of
CAN.

Hardware: 739 GFLOP per image and step, 1.71 times CAN's; 800 epochs of ImageNet-1k are 7.6e20 FLOP,
on 64 H100 at 50 % of their peak about seven hours (arithmetic, not a measurement).
Result: for this run on ImageNet-1k the CAN paper (Table 3) reports 83.4 % fine-tuned and 73.9 %
linear probe. For comparison, also 800 epochs of ViT-L: CAN 84.7 and 76.2 %, MAE 83.7 and 71.4 % by
the same authors, 84.9 and 73.5 % by MAE's authors. Not reproduced here.
"""

from ml_collections import ConfigDict

from can_jax.config import default_config
from can_jax.config.baselines import METHODS, changed


def get_config() -> ConfigDict:
    config = changed(default_config(), METHODS["simclr"])
    config.total_epochs = 800
    config.data.update(source="folder", image_size=224)
    config.model.size = "L"
    config.model.projector.final_norm = True
    config.objective.contrastive.directions = "sum"
    return config
