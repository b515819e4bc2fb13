"""Decoding of encoded images to pixels."""
