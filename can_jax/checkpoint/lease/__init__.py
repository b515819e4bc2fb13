"""A lease that lets only one process, on any host, write to a run directory at a time.

`protocol.py` implements the lease, and `records.py` the record files. `owner.py` identifies
processes, and `files.py` implements the file operations on disks and buckets. This package uses
neither JAX nor threads; `can_jax.checkpoint.lock` uses both.
"""
