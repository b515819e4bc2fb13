"""`python -m can_jax.embed`; see `can_jax.cli.commands.embed`."""

from can_jax.cli.start import Entry

main = Entry("embed")

if __name__ == "__main__":
    main.run()
