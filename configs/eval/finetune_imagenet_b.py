"""MAE's fine-tuning of ViT-B on ImageNet.

    python -m can_jax.evaluate --config=configs/eval/finetune_imagenet_b.py \
        --checkpoint=runs/vit_b --workdir=runs/vit_b_finetuned --config.data.source=folder \
        --config.data.path=/data/imagenet

100 epochs, batch 1024, AdamW with base rate 5e-4 for 256 images, layer-wise decay 0.65, drop
path 0.1, RandAugment (9, 0.5), mixup 0.8, CutMix 1.0, label smoothing 0.1 (arXiv 2111.06377,
table 9), and random erasing with probability 0.25, as in MAE's code. `data.path` holds `train/` and
`val/`.

Hardware: not run at this scale. Re-running the command resumes a killed or preempted run.
Result: not measured. MAE's ViT-B, pretrained by its authors for 1600 epochs, reaches 83.6 % this
way. Each pretraining recipe quotes the paper's result for its run.
"""

from ml_collections import ConfigDict

from can_jax.evaluate.config import default_evaluation


def get_config() -> ConfigDict:
    config = default_evaluation()
    config.protocol = "classify"
    config.features = "patches"
    config.batch_size = 1024
    config.data.test_split = "val"
    config.classify.update(
        learning_rate=5e-4, layer_decay=0.65, drop_path=0.1, total_epochs=100.0, warmup_epochs=5.0,
        randaugment=(2, 9.0, 0.5), random_erasing=0.25, mixup=0.8, cutmix=1.0, remat="dots",
    )  # fmt: skip
    return config
