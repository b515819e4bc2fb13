"""Who may write to a run directory: one process, on any number of hosts that share it.

`protocol.py` has the rules, `records.py` the files that they are about, `owner.py` the identity of
a process, `files.py` the file operations, for disks and for buckets. Nothing here imports JAX or
starts a thread; `can_jax.checkpoint.lock` does both.
"""
