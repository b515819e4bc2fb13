"""MAE, ViT-L/16 at 224 px: CAN without its contrastive and denoising branches.

    python -m can_jax.main --config=configs/mae_vit_l.py --workdir=runs/mae_vit_l \
        --config.data.path=/data/imagenet

As in arXiv 2111.06377, a step sees one view, cropped and flipped, with three quarters of the
patches masked. The two branches with zero weight are not built.

Hardware: 124 GFLOP per image and step; 800 epochs of ImageNet-1k are 1.3e20 FLOP, on 64 H100 at
50 % of their peak a bit over an hour (arithmetic, not a measurement).
Result: for this run on ImageNet-1k the CAN paper (Table 3) reports 83.7 % fine-tuned and 71.4 %
linear probe. It quotes 84.9 and 73.5 % from MAE's authors. For comparison, also 800 epochs of
ViT-L: CAN 84.7 and 76.2 %, SimCLR 83.4 and 73.9 %. Not reproduced here.
"""

from ml_collections import ConfigDict

from can_jax.config import default_config
from can_jax.config.baselines import METHODS, changed


def get_config() -> ConfigDict:
    config = changed(default_config(), METHODS["mae"])
    config.total_epochs = 800
    config.data.update(source="folder", image_size=224)
    config.model.size = "L"
    config.optimizer.learning_rate = 1.5e-4
    config.figures.every_steps = 5000
    return config
