"""The entry point of `python -m can_jax.embed`, which `can_jax.cli.commands.embed` implements."""

from can_jax.cli.start import Entry

main = Entry("embed")

if __name__ == "__main__":
    main.run()
