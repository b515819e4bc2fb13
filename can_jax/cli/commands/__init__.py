"""The commands, one module each: `can-jax NAME`, or `python -m can_jax.…`."""
