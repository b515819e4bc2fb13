"""The command line: one module per command in `commands/`, and the code that they share."""
