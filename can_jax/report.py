"""`python -m can_jax.report`; see `can_jax.cli.commands.report`."""

from can_jax.cli.start import Entry

main = Entry("report")

if __name__ == "__main__":
    main.run()
