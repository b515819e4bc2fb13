"""A re-export of `can_jax.evaluate.config`, at the path from which recipes import it."""

from can_jax.evaluate.config import default_evaluation as default_evaluation
from can_jax.evaluate.config import resolve_evaluation as resolve_evaluation
