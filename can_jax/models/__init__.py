"""The network, from patches to predictions; it is independent of data, steps and checkpoints."""
