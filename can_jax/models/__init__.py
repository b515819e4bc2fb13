"""The network, which maps patches to predictions; it does not depend on data, training or
checkpoints."""
