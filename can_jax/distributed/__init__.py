"""Multi-process jobs, the device mesh, and the sharding of batches and parameters over it."""
