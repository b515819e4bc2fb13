"""The entry point of `python -m can_jax.doctor`, which `can_jax.cli.commands.doctor` implements."""

from can_jax.cli.start import Entry

main = Entry("doctor")

if __name__ == "__main__":
    main.run()
