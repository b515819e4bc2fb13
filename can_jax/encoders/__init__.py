"""Pretrained encoders, opened from a run, an export or the weights of another library."""
