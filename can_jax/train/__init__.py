"""The train step and the run around it; `losses.py` is the method."""
