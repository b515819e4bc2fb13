"""Monitoring of a run: metrics, console output, logs, timing, profiling and fault detection."""
