"""CAN on CIFAR-10 with a ViT of 3.6 million parameters, for one GPU.

    python -m can_jax.main --config=configs/cifar10_vit.py --workdir=runs/cifar10_vit \
        --config.data.path=/data/cifar10

`data.path` is that of `configs/cifar10.py`. `configs/eval/finetune_cifar10_vit.py` fine-tunes the
encoder. Pretraining with MAE and fine-tuning a ViT of the same size gives 96.41 % (arXiv
2402.03752); a linear head on SimCLR's ResNet-18 after 1000 epochs gives 90.74 % (solo-learn).

The learning rate is not tuned.

Hardware: one GPU with 16 GB. A step has 1.8 GFLOP per image, so 1000 epochs take about half an hour
if an H100 reaches 5 % of its peak, as with the smaller network of `configs/cifar10.py`. The run can
be stopped at any time; the same command resumes it.
Result: not measured.
"""

from ml_collections import ConfigDict

from can_jax.config import load_recipe


def get_config() -> ConfigDict:
    config = load_recipe(__file__, "cifar10")
    config.batch_size = 1024
    config.total_epochs = 1000
    config.model.update(width=192, depth=8, heads=6, dtype="bfloat16")
    config.model.decoder.update(width=128, depth=2, heads=4)
    config.model.projector.hidden = 1024
    config.optimizer.update(learning_rate=1e-3, warmup_share=0.02)
    config.probe.every_epochs = 50
    config.figures.every_steps = 5000
    return config
