"""Networks that map image patches to predictions. The package does not depend on the code for data,
training and checkpoints."""
