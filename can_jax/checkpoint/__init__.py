"""Checkpoints, stored configurations and the lock of a run directory."""
