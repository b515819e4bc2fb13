"""Learning-rate schedule and AdamW with the decay mask."""

import optax
from ml_collections import ConfigDict

from can_jax.parallel.rules import decay_mask

REFERENCE_BATCH = 256  # images, for which `optimizer.learning_rate` is stated


def peak_learning_rate(config: ConfigDict) -> float:
    """``optimizer.learning_rate`` scaled linearly to the global batch (arXiv 1706.02677)."""
    return config.optimizer.learning_rate * config.batch_size / REFERENCE_BATCH


def learning_rate_schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear from 0 to ``peak`` in ``warmup_steps``, then half a cosine to 0 at ``total_steps``.

    A run that ends before its warm-up does sees the warm-up's start only.
    """
    warmup = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    decay = optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1))
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW without its learning rate, which the step applies, so that what is logged is what was
    used and a skipped step does not shift the schedule."""
    settings = config.optimizer
    return optax.chain(
        optax.scale_by_adam(
            settings.beta1, settings.beta2, settings.epsilon, mu_dtype=settings.moment_dtype
        ),
        optax.add_decayed_weights(settings.weight_decay, mask=decay_mask),
    )
