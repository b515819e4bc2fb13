"""The entry point of `python -m can_jax.plan.table`; see `can_jax.cli.commands.plan_table`."""

from can_jax.cli.start import Entry

main = Entry("plan-table")

if __name__ == "__main__":
    main.run()
