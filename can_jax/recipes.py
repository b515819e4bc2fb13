"""`python -m can_jax.recipes`; see `can_jax.cli.commands.recipes`."""

from can_jax.cli.start import Entry

main = Entry("recipes")

if __name__ == "__main__":
    main.run()
