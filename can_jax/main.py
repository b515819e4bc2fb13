"""The entry point of `python -m can_jax.main`, which `can_jax.cli.commands.train` implements."""

from can_jax.cli.start import Entry

main = Entry("train")

if __name__ == "__main__":
    main.run()
