"""The lease of a run directory: one process may write to it, on any number of hosts that share it.

`protocol.py` has the rules, `records.py` the files they use, `owner.py` the identity of a process,
and `files.py` the file operations on disks and buckets. Nothing here imports JAX or starts a
thread; `can_jax.checkpoint.lock` does both.
"""
