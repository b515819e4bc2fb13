"""Processes of a job, the device mesh, and the shardings of batches and parameters on it."""
