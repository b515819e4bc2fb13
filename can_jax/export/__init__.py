"""Weights on their way to other libraries, each file proved before it is handed over."""
