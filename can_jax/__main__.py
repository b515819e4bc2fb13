"""The entry point of `python -m can_jax COMMAND`, which equals the console script `can-jax
COMMAND`."""

from can_jax.cli.start import console

if __name__ == "__main__":
    console()
