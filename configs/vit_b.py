"""CAN, ViT-B/16 at 224 px: the paper's run of 800 epochs on ImageNet-1k.

    python -m can_jax.main --config=configs/vit_b.py --workdir=runs/vit_b \
        --config.data.path=/data/imagenet

`data.path` is a folder with images anywhere below it; class folders are not needed. For the kNN
probe give labeled splits, `train/CLASS/…` and `val/CLASS/…`, with
`--config.probe.every_epochs=10`.

Hardware: 170 GFLOP per image and step, 1.7e20 FLOP in all: about two days on eight H100 at 12 %
of their peak, half a day at 50 % (arithmetic, not a measurement). Fewer devices need a smaller
`batch_size`; the learning rate scales with it.
Result: for this run on ImageNet-1k the paper (Table 3) reports 83.4 % fine-tuned and 74.0 % linear
probe. It has no row of MAE or SimCLR for ViT-B and 800 epochs. Not reproduced here. Only the first
steps were run, on photographs at 224 px on a CPU.
"""

from ml_collections import ConfigDict

from can_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.total_epochs = 800
    config.data.update(source="folder", image_size=224)
    config.model.size = "B"
    config.figures.every_steps = 5000
    return config
