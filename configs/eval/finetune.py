"""Fine-tuning of encoder and head on a small labeled data set, with crops and flips only.

    python -m can_jax.evaluate --config=configs/eval/finetune.py --checkpoint=runs/cifar10 \
        --workdir=runs/cifar10_finetuned

Re-running the command resumes a killed or preempted run. `finetune_imagenet_b.py`,
`finetune_imagenet_l.py` and `finetune_imagenet_h.py` have MAE's settings for ImageNet.

Hardware: two CPU cores, 500 images/s with the encoder of `configs/cifar10.py`.
Result: measured on a checkpoint of `configs/cifar10.py` in the paper's form, with
`--config.classify.total_epochs=2`: 64.4 %, and 51.6 % after the same number of steps from the
untrained encoder (`--untrained --config.classify.layer_decay=1`).
"""

from ml_collections import ConfigDict

from can_jax.evaluate.config import default_evaluation


def get_config() -> ConfigDict:
    config = default_evaluation()
    config.protocol = "classify"
    config.batch_size = 128
    config.classify.update(
        total_epochs=5.0, warmup_epochs=0.5, test_every_epochs=1.0, learning_rate=2e-3,
        drop_path=0.0, mixup=0.0, cutmix=0.0, label_smoothing=0.1, randaugment=(0, 0.0, 0.0),
        random_erasing=0.0, crop_area=(0.3, 1.0), crop_interpolation="bilinear",
    )  # fmt: skip
    return config
