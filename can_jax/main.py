"""`python -m can_jax.main`; see `can_jax.cli.commands.train`."""

from can_jax.cli.start import Entry

main = Entry("train")

if __name__ == "__main__":
    main.run()
