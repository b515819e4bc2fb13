"""Benchmarks of the input pipeline and the train step, with Pillow and PyTorch baselines."""
