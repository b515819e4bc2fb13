"""Data sources, one file each; `registry.py` opens them by name."""
