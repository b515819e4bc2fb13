"""Compare network, losses and gradients with a file of reference vectors."""
