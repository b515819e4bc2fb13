"""`python -m can_jax.replay`; see `can_jax.cli.commands.replay`."""

from can_jax.cli.start import Entry

main = Entry("replay")

if __name__ == "__main__":
    main.run()
