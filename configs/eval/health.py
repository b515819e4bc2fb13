"""Representation health: rank, alignment, uniformity, tolerance and dead dimensions.

    python -m can_jax.evaluate --config=configs/eval/health.py --checkpoint=runs/cifar10 \
        --workdir=runs/cifar10_health

Alignment is measured between two views of an image, augmented as in pretraining. The report also
lists the kNN accuracy of each class.

Hardware: any; CIFAR-10 takes two minutes on two CPU cores.
Result: measured on a checkpoint of `configs/cifar10.py` in the paper's form: effective rank 34.2 of
96, alignment 0.10, uniformity -0.80, tolerance 0.82, no dead dimension.
"""

from ml_collections import ConfigDict

from can_jax.evaluate.config import default_evaluation


def get_config() -> ConfigDict:
    config = default_evaluation()
    config.protocol = "health"
    return config
