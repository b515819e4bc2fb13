"""The entry point of `python -m can_jax.report`, which `can_jax.cli.commands.report` implements."""

from can_jax.cli.start import Entry

main = Entry("report")

if __name__ == "__main__":
    main.run()
