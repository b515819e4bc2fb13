"""Data sources, one module for each kind; `registry.py` opens them by name."""
