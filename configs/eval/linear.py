"""Linear heads on frozen features: a grid of rates, decays and features, trained together.

    python -m can_jax.evaluate --config=configs/eval/linear.py --checkpoint=runs/cifar10 \
        --workdir=runs/cifar10_linear

Features are extracted once, without augmentation. The best head by a tenth of the training examples
is trained again on all of them, and tested once. MAE's protocol is `linear_imagenet.py`.

Hardware: any; CIFAR-10 takes two minutes on two CPU cores.
Result: measured on the checkpoint of `configs/cifar10.py`: 62.7 %, untrained encoder 46.1 %.
"""

from ml_collections import ConfigDict

from can_jax.evaluate.config import default_evaluation


def get_config() -> ConfigDict:
    config = default_evaluation()
    config.protocol = "linear"
    return config
