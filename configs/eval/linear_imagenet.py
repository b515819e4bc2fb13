"""MAE's linear probe on ImageNet: BatchNorm and a head on the frozen class token, with LARS.

    python -m can_jax.evaluate --config=configs/eval/linear_imagenet.py --checkpoint=runs/vit_l \
        --workdir=runs/vit_l_linear --config.data.source=folder --config.data.path=/data/imagenet

90 epochs, batch 16,384, base rate 0.1 for 256 images (6.4), 10 epochs of warm-up, no weight decay,
random crops and flips only (arXiv 2111.06377, table 10). Crops are drawn as in MAE's code.
`data.path` holds `train/` and `val/`.

Hardware: 90 forward passes over ImageNet; with ViT-L/16 about 1.5e19 FLOPs of forward passes.
Result: not measured at this scale; tested on a small ImageNet of the same layout.
"""

from ml_collections import ConfigDict

from can_jax.evaluate.config import default_evaluation


def get_config() -> ConfigDict:
    config = default_evaluation()
    config.protocol = "classify"
    config.features = "class"
    config.batch_size = 16384
    config.data.test_split = "val"
    config.classify.update(
        freeze_encoder=True, head_norm="batch", optimizer="lars", learning_rate=0.1,
        min_learning_rate=0.0,
        weight_decay=0.0, total_epochs=90.0, warmup_epochs=10.0, drop_path=0.0, mixup=0.0,
        cutmix=0.0, label_smoothing=0.0, randaugment=(0, 0.0, 0.0), random_erasing=0.0,
        crop_fit="clamp",
    )  # fmt: skip
    return config
