"""The entry point of `python -m can_jax.recipes`, which `can_jax.cli.commands.recipes`
implements."""

from can_jax.cli.start import Entry

main = Entry("recipes")

if __name__ == "__main__":
    main.run()
