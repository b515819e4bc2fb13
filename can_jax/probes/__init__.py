"""What frozen features are worth: measures of them, and the probe that runs while training."""
