"""The commands, one module each, run as `can-jax NAME` or `python -m can_jax.…`."""
