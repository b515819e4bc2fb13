"""The errors that functions of this package raise for their callers."""

from can_jax.utils.errors import Preempted, UserError

__all__ = ["Preempted", "UserError"]
