"""Checks of an installation: a comparison with reference vectors, and checks of the machine."""
