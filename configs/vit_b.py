"""CAN, ViT-B/16 at 224 px: the paper's recipe on ImageNet-style data.

    python -m can_jax.main --config=configs/vit_b.py --workdir=runs/vit_b \
        --config.data.path=/data/imagenet

`data.path` is a folder with images anywhere below it; class folders are not needed. For the kNN
probe give labelled splits, `train/CLASS/…` and `val/CLASS/…`, with
`--config.probe.every_epochs=10`.

Hardware: 169 GFLOP an image and step, 1.7e20 FLOP in all: about two days on eight H100 at 12 %
of their peak, half a day at 50 % (arithmetic, not a measurement). Fewer devices need a smaller
`batch_size`, and the learning rate follows it.
Result: the paper reports 74.8 % linear probe on ImageNet-1k for ViT-B pretrained on it (an earlier
abstract of arXiv 2210.16870). Not reproduced here. The first steps were run on photographs at
224 px on a CPU.
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
