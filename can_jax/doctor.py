"""`python -m can_jax.doctor`; see `can_jax.cli.commands.doctor`."""

from can_jax.cli.start import Entry

main = Entry("doctor")

if __name__ == "__main__":
    main.run()
