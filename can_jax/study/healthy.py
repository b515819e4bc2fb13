"""The entry point of `python -m can_jax.study.healthy`; see `can_jax.cli.commands.check_curve`."""

from can_jax.cli.start import Entry

main = Entry("check-curve")

if __name__ == "__main__":
    main.run()
