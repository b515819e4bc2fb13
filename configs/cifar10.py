"""CAN on CIFAR-10, small enough for a CPU.

    python -m can_jax.main --config=configs/cifar10.py --workdir=runs/cifar10 \
        --config.data.path=/data/cifar10

`data.path` holds `train*.npz` and `test*.npz` with `images` (n, 32, 32, 3) and `labels`. For TFDS,
set `--config.data.source=tfds --config.data.name=cifar10` instead.

The network is narrow, and the contrastive loss has a larger weight than in the paper, so that
twenty minutes show an effect.

Hardware: two idle CPU cores, about 20 minutes at 370 images/s. The run can be stopped at any time;
the same command resumes it.
Result: measured here with one seed and the paper's form of the denoising branch (`PAPER_NOISE` in
`can_jax/config/baselines.py`). kNN accuracy is 31.7 % on raw pixels, 30.6 % untrained, 45.4 % after
one epoch and 54.3 % after nine. The contrastive loss falls to 1.4, reconstruction to 0.38,
denoising to 0.0016. A prediction of zero noise has the loss 0.0008, so the paper's form does not
learn to predict the noise here. The default form learns to predict it; its denoising loss is on
another scale (`docs/method.md`).
"""

from ml_collections import ConfigDict

from can_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.batch_size = 128
    config.total_epochs = 9
    config.log_every_steps = 100
    config.data.update(source="arrays", image_size=32)
    config.augment.update(
        crop_area=(0.3, 1.0), blur=0.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
    )
    config.model.update(
        size="Ti", width=96, depth=4, heads=3, patch_size=4, dtype="float32", scan=False
    )
    config.model.decoder.update(width=64, depth=1, heads=4)
    config.model.projector.update(layers=2, hidden=512)
    config.objective.contrastive.weight = 1.0
    config.optimizer.update(learning_rate=2e-3, warmup_share=1 / 9)
    config.checkpoint.every_steps = 1000
    config.probe.update(every_epochs=1, bank=10000, queries=5000)
    config.figures.every_steps = 1000
    return config
