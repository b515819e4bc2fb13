"""A checksum that identifies a set of weights."""

import hashlib
from typing import Any

import numpy as np

from can_jax.distributed.sharding_rules import named_leaves


def sha256_of(parameters: Any) -> str:
    """Return the SHA-256 of a tree's paths and values as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, leaf in named_leaves(parameters).items():
        digest.update(name.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()
