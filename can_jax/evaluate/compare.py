"""The entry point of `python -m can_jax.evaluate.compare`; see `can_jax.cli.commands.compare`."""

from can_jax.cli.start import Entry

main = Entry("compare")

if __name__ == "__main__":
    main.run()
