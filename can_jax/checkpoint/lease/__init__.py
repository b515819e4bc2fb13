"""A lease that lets one process at a time write to a run directory, also across hosts.

`protocol.py` implements the lease, `records.py` the files it uses, `owner.py` the identity of a
process, and `files.py` the file operations on disks and buckets. This package imports no JAX and
starts no thread; `can_jax.checkpoint.lock` does both.
"""
