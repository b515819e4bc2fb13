"""Weighted nearest neighbors: the accuracy for every number of neighbors and temperature.

    python -m can_jax.evaluate --config=configs/eval/knn.py --checkpoint=runs/cifar10 \
        --workdir=runs/cifar10_knn

By default the data is that of the run. `knn/top1` is the test accuracy of the settings that are
best on a held-out tenth of the training examples. For this test, the bank holds all training
examples.

Hardware: any; CIFAR-10 takes a minute on two CPU cores, most of it for the encoder.
Result: measured on a checkpoint of `configs/cifar10.py` in the paper's form:
60.6 %, untrained encoder 33.3 %.
"""

from ml_collections import ConfigDict

from can_jax.evaluate.config import default_evaluation


def get_config() -> ConfigDict:
    config = default_evaluation()
    config.protocol = "knn"
    return config
