"""The entry point of `python -m can_jax.selfcheck`; see `can_jax.cli.commands.selfcheck`."""

from can_jax.cli.start import Entry

main = Entry("selfcheck")

if __name__ == "__main__":
    main.run()
