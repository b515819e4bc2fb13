"""Networks that map image patches to predictions, independent of the code for data, training and
checkpoints."""
