"""The network, from pixels to predictions. Knows nothing of data, steps or checkpoints."""
