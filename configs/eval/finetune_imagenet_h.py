"""MAE's fine-tuning of ViT-H on ImageNet.

    python -m can_jax.evaluate --config=configs/eval/finetune_imagenet_h.py \
        --checkpoint=runs/vit_h --workdir=runs/vit_h_finetuned --config.data.source=folder \
        --config.data.path=/data/imagenet

50 epochs, batch 1024, AdamW with base rate 1e-3 for 256 images, layer-wise decay 0.75, drop
path 0.3, RandAugment (9, 0.5), mixup 0.8, CutMix 1.0, label smoothing 0.1 (arXiv 2111.06377,
table 9), and random erasing with probability 0.25, as in MAE's code. `data.path` holds `train/` and
`val/`.

Hardware: not run at this scale. Re-running the command resumes a killed or preempted run.
Result: not measured; MAE's ViT-H, pretrained for 1600 epochs, reaches 86.9 % this way.
"""

from ml_collections import ConfigDict

from can_jax.config import load_recipe


def get_config() -> ConfigDict:
    config = load_recipe(__file__, "finetune_imagenet_b")
    config.classify.update(learning_rate=1e-3, layer_decay=0.75, drop_path=0.3, total_epochs=50.0)
    return config
