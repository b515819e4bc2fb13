"""The index of a data set: `python -m can_jax.data.index`."""
