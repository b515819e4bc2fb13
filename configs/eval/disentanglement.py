"""Disentanglement of features on synthetic shapes, whose factors are known: DCI and MIG.

    python -m can_jax.evaluate --config=configs/eval/disentanglement.py \
        --checkpoint=runs/quickstart --workdir=runs/quickstart_disentanglement

The data source must be `shapes`, or a source of your own that defines `factors()`. For an
encoder that was trained on other data, add `--config.data.source=shapes`.

Hardware: any; a minute on two CPU cores.
Result: not measured.
"""

from ml_collections import ConfigDict

from can_jax.evaluate.config import default_evaluation


def get_config() -> ConfigDict:
    config = default_evaluation()
    config.protocol = "disentanglement"
    return config
