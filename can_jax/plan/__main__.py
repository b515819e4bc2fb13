"""The entry point of `python -m can_jax.plan`; see `can_jax.cli.commands.plan`."""

from can_jax.cli.start import Entry

main = Entry("plan")

if __name__ == "__main__":
    main.run()
