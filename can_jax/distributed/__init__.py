"""Processes, the device mesh, and where each parameter lies on it."""
