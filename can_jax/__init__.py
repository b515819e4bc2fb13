"""CAN in JAX: contrastive, masked autoencoding and noise prediction in one pretraining step."""

__version__ = "0.1.0"
