"""Few-shot evaluation: ridge regression on 1, 5, 10 and 25 examples of each class, five draws.

    python -m can_jax.evaluate --config=configs/eval/fewshot.py --checkpoint=runs/vit_l \
        --workdir=runs/vit_l_fewshot --config.data.source=folder \
        --config.data.path=/data/imagenet --config.data.test_split=val

Each further data set is a dict with keys of `data`: `--config.fewshot.datasets="({'name': 'pets',
'path': '/data/pets', 'test_split': 'test'},)"`. As in big_vision, the ridge penalty is 1024, and a
constant feature is appended.

Hardware: any; CIFAR-10 takes a minute on two CPU cores.
Result: measured on a checkpoint of `configs/cifar10.py` in the paper's form: 24.8, 31.5, 36.9 and
42.8 % for 1, 5, 10 and 25 shots, untrained encoder 15.8, 18.8, 21.9 and 24.1 %.
"""

from ml_collections import ConfigDict

from can_jax.evaluate.config import default_evaluation


def get_config() -> ConfigDict:
    config = default_evaluation()
    config.protocol = "fewshot"
    return config
