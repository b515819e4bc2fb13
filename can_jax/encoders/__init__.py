"""Pretrained encoders, which are loaded from a run, an export or the weights of another library."""
