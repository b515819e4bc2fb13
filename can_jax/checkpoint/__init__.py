"""What a run directory holds besides metrics: checkpoints, configurations, its lock."""
