"""CAN, ViT-L/16 at 224 px: the paper's main model.

    python -m can_jax.main --config=configs/vit_l.py --workdir=runs/vit_l \
        --config.data.path=/data/images

`data.path` is a folder with images anywhere below it; no labels are needed.

Hardware: 431 GFLOP an image and step; 800 epochs of ImageNet-1k are 4.4e20 FLOP. What `python -m
can_jax.plan` makes of it at the recipe's 4096 images, the step at an assumed 40 % of the peak:

    slice      settings  memory of a device  step     images/s
    v5e:16x16  -         8.9 of 15.8 GiB     0.095 s  43,000
    v6e:16x16  -         8.7 of 31.2 GiB     0.023 s  180,000
    v4:4x4x4   -         17.6 of 30.8 GiB    0.256 s  16,000
    v5p:4x4x4  -         17.7 of 95.7 GiB    0.153 s  26,800
    h100:8x8   -         25.1 of 72.0 GiB    0.125 s  32,600

Result: the paper reports 75.4 % linear probe and 86.1 % fine-tuning on ImageNet-1k, pretrained on
JFT-300M for 5000 ImageNet-sized epochs. Not reproduced here.
"""

from ml_collections import ConfigDict

from can_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.total_epochs = 800
    config.data.update(source="folder", image_size=224)
    config.model.update(size="L", remat="dots")  # of products only attention's logits twice
    config.figures.every_steps = 5000
    return config
