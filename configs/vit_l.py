"""CAN, ViT-L/16 at 224 px: the paper's run of 800 epochs on ImageNet-1k.

    python -m can_jax.main --config=configs/vit_l.py --workdir=runs/vit_l \
        --config.data.path=/data/imagenet

`data.path` is a folder with images anywhere below it; no labels are needed. The paper's longer run
on JFT-300M is `configs/jft_vit_l.py`.

Hardware: 432 GFLOP per image and step; 800 epochs of ImageNet-1k are 4.4e20 FLOP. The table lists
plans of `python -m can_jax.plan` for the recipe's 4096 images and its defaults. All fit into
memory. The compilers estimate the time of a step; the expected time, the rate and the days follow
from the calibration in `docs/plan.md`:

    slice      settings  memory of a device  estimated  expected  images/s  days
    v5e:16x16  -         3.6 of 15.8 GiB     0.084 s    0.095 s   43,300    0.27
    h100:8x8   -         14.2 of 72.0 GiB    0.074 s    0.123 s   33,400    0.36

Result: for this run on ImageNet-1k the paper (Table 3) reports 84.7 % fine-tuned and 76.2 % linear
probe. For comparison, also 800 epochs of ViT-L: SimCLR 83.4 and 73.9 %, MAE 83.7 and 71.4 % by the
same authors, 84.9 and 73.5 % by MAE's authors. Not reproduced here.
"""

from ml_collections import ConfigDict

from can_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.total_epochs = 800
    config.data.update(source="folder", image_size=224)
    config.model.size = "L"
    config.figures.every_steps = 5000
    return config
