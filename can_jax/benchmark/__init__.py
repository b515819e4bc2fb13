"""Benchmarks of the input pipeline and of the train step, beside baseline implementations."""
