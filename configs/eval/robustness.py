"""Robustness and calibration: computed corruptions, and test sets with a distribution shift.

    python -m can_jax.evaluate --config=configs/eval/robustness.py --checkpoint=runs/l_finetuned \
        --workdir=runs/l_robust --config.data.source=folder --config.data.path=/data/imagenet \
        --config.data.test_split=val --config.robustness.shifts="(
            {'kind': 'imagenet_c', 'path': '/data/imagenet-c'},
            {'kind': 'numbered', 'name': 'imagenet_v2', 'path': '/data/imagenetv2-matched'},
            {'kind': 'classes', 'name': 'imagenet_a', 'path': '/data/imagenet-a'},
            {'kind': 'classes', 'name': 'imagenet_r', 'path': '/data/imagenet-r'},
            {'kind': 'classes', 'name': 'sketch', 'path': '/data/imagenet-sketch'},
            {'kind': 'real', 'path': '/data/imagenet/val', 'labels': '/data/real.json'},
            {'kind': 'objectnet', 'path': '/data/objectnet-1.0'})"

The checkpoint is an encoder, or a classifier that `finetune*.py` or `linear_imagenet.py` trained.
For an encoder the command first trains a linear head, as `linear.py` does.

Hardware: 75 passes over the test images; one core processes a few hundred small images per second.
Result: measured on `configs/cifar10.py` in the paper's form, after two epochs of fine-tuning, on
500 test images: 64.6 % clean, 58.4 % as the mean of all corruptions and severities, calibration
error 9.4 %. In that measurement the corruption fog was too rough; it has been corrected since.
"""

from ml_collections import ConfigDict

from can_jax.evaluate.config import default_evaluation


def get_config() -> ConfigDict:
    config = default_evaluation()
    config.protocol = "robustness"
    return config
