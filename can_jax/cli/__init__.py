"""Commands: one module each in `commands/`, and what they share."""
