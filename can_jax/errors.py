"""The exceptions that the public functions of this package raise."""

from can_jax.utils.errors import Preempted, UserError

__all__ = ["Preempted", "UserError"]
