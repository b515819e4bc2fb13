"""The entry point of `python -m can_jax.evaluate`; see `can_jax.cli.commands.evaluate`."""

from can_jax.cli.start import Entry

main = Entry("evaluate")

if __name__ == "__main__":
    main.run()
