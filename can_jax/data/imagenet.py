"""The entry point of `python -m can_jax.data.imagenet`; see `can_jax.cli.commands.imagenet`."""

from can_jax.cli.start import Entry

main = Entry("imagenet")

if __name__ == "__main__":
    main.run()
