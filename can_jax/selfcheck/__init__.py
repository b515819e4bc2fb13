"""A comparison of network, losses and gradients with a file of reference vectors."""
