"""The entry point of `python -m can_jax.data.index`; see `can_jax.cli.commands.index`."""

from can_jax.cli.start import Entry

main = Entry("index")

if __name__ == "__main__":
    main.run()
