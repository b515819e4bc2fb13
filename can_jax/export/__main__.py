"""The entry point of `python -m can_jax.export`; see `can_jax.cli.commands.export`."""

from can_jax.cli.start import Entry

main = Entry("export")

if __name__ == "__main__":
    main.run()
