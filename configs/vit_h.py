"""CAN, ViT-H/14 at 224 px.

    python -m can_jax.main --config=configs/vit_h.py --workdir=runs/vit_h \
        --config.data.path=/data/images

`data.path` is a folder with images anywhere below it; no labels are needed.

Hardware: 1.1 TFLOP per image and step; 800 epochs of ImageNet-1k are 1.1e21 FLOP. The table
lists plans of `python -m can_jax.plan` for the recipe's 4096 images and its defaults. Both
fit into memory. The compilers estimate the time of a step; the expected time, the rate and the
days follow from the calibration in `docs/plan.md`:

    slice      settings  memory of a device  estimated  expected  images/s  days
    v5e:16x16  -         7.6 of 15.8 GiB     0.214 s    0.240 s   17,100    0.70
    h100:8x8   -         26.7 of 72.0 GiB    0.154 s    0.256 s   16,000    0.74

Result: the paper's tables have no ViT-H, and none was measured here.
"""

from ml_collections import ConfigDict

from can_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.total_epochs = 800
    config.data.update(source="folder", image_size=224)
    config.model.update(size="H", patch_size=14)
    config.figures.every_steps = 5000
    return config
