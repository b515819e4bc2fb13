"""A JAX implementation of CAN: contrastive learning, masked autoencoding and noise prediction in
one pretraining step."""

from can_jax.api import (
    default_config,
    evaluate_encoder,
    export_encoder,
    load,
    plan_run,
    pretrain,
)

__version__ = "0.1.0"
__all__ = [
    "default_config", "evaluate_encoder", "export_encoder", "load", "plan_run", "pretrain",
]  # fmt: skip
