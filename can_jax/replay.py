"""The entry point of `python -m can_jax.replay`, which `can_jax.cli.commands.replay` implements."""

from can_jax.cli.start import Entry

main = Entry("replay")

if __name__ == "__main__":
    main.run()
