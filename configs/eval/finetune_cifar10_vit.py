"""Fine-tuning of the encoder of `configs/cifar10_vit.py` on CIFAR-10.

    python -m can_jax.evaluate --config=configs/eval/finetune_cifar10_vit.py \
        --checkpoint=runs/cifar10_vit --workdir=runs/cifar10_vit_finetuned

The settings are MAE's for ViT-B (arXiv 2111.06377, table 9), with crops of at least 30 % of the
image. Random erasing is off, because it can hide most of an object of 32 px.

Hardware: one GPU. Re-running the command resumes a killed or preempted run.
Result: not measured.
"""

from ml_collections import ConfigDict

from can_jax.config import load_recipe


def get_config() -> ConfigDict:
    config = load_recipe(__file__, "finetune_imagenet_b")
    config.batch_size = 256
    config.data.test_split = "test"
    config.classify.update(random_erasing=0.0, crop_area=(0.3, 1.0), remat="none")
    return config
