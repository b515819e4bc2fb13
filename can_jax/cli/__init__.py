"""The command-line interface: one module per command in `commands/`, and their shared code."""
