"""The entry point of `python -m can_jax.study`; see `can_jax.cli.commands.study`."""

from can_jax.cli.start import Entry

main = Entry("study")

if __name__ == "__main__":
    main.run()
