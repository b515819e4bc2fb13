"""The contents of a run directory besides metrics: checkpoints, configurations and the lock."""
