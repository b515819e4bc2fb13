"""CAN on synthetic shapes: the first run, on a laptop, without any download.

    python -m can_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

`make quickstart` runs the same command in a virtual environment of its own. The model is a narrow
ViT on images of 40 px. The contrastive loss has a larger weight than in the paper, and color jitter
is strong, so that a short run shows an effect. There are ten classes, so chance is 10 %.

Hardware: two CPU cores; about three minutes.
Result: measured here with two seeds, kNN accuracy 12.8 % on raw pixels, 12.9 and 14.1 % on the
untrained encoder, 44.0 and 43.5 % on the trained one. The decoder does not learn to predict the
noise in 800 steps, so the predicted noise in the figures stays blank (`docs/curves.md`).
"""

from ml_collections import ConfigDict

from can_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.batch_size = 128
    config.total_steps = 800
    config.log_every_steps = 50
    config.data.update(source="shapes", image_size=40)
    config.augment.update(
        crop_area=(0.5, 1.0), jitter=1.0, brightness=0.5, contrast=0.5, saturation=0.8, hue=0.2,
        grayscale=0.5, blur=0.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    )  # fmt: skip
    config.model.update(
        size="Ti", width=96, depth=4, heads=3, patch_size=8, dtype="float32", scan=False
    )
    # In the first epochs, whitening speeds up the fall of the denoising loss, but slows down the
    # fall of the contrastive loss.
    config.model.patch_embed = "linear"
    config.model.decoder.update(width=64, depth=1, heads=4)
    config.model.projector.update(layers=2, hidden=256)
    config.objective.contrastive.weight = 1.0
    config.optimizer.update(learning_rate=4e-3, warmup_share=0.1)
    config.checkpoint.update(every_steps=400, keep_last=2)
    config.probe.update(every_steps=200, bank=4000, queries=2000)
    config.figures.every_steps = 400
    return config
