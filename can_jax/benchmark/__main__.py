"""The entry point of `python -m can_jax.benchmark`; see `can_jax.cli.commands.benchmark`."""

from can_jax.cli.start import Entry

main = Entry("benchmark")

if __name__ == "__main__":
    main.run()
