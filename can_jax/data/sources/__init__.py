"""Data sources, one kind a file; `registry.py` opens them by name."""
