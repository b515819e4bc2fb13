"""The evaluation protocols and their registry."""
