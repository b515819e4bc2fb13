"""Linear heads on frozen features: a grid of learning rates, decays and features, trained together.

    python -m can_jax.evaluate --config=configs/eval/linear.py --checkpoint=runs/cifar10 \
        --workdir=runs/cifar10_linear

Features are extracted once, without augmentation. The settings that are best on a held-out tenth
of the training examples are retrained on all of them, and tested once. `linear_imagenet.py` is
MAE's protocol for ImageNet.

Hardware: any; CIFAR-10 takes two minutes on two CPU cores.
Result: measured on a checkpoint of `configs/cifar10.py` in the paper's form:
62.7 %, untrained encoder 46.1 %.
"""

from ml_collections import ConfigDict

from can_jax.evaluate.config import default_evaluation


def get_config() -> ConfigDict:
    config = default_evaluation()
    config.protocol = "linear"
    return config
