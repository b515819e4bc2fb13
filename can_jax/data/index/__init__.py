"""The index of a data set, written by `python -m can_jax.data.index`."""
