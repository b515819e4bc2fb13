"""The entry point of `python -m can_jax.plan.contrastive`; see
`can_jax.cli.commands.plan_contrastive`."""

from can_jax.cli.start import Entry

main = Entry("plan-contrastive")

if __name__ == "__main__":
    main.run()
