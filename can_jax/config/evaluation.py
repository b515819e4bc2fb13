"""Aliases of functions in `can_jax.evaluate.config`, for recipes that import them from here."""

from can_jax.evaluate.config import default_evaluation as default_evaluation
from can_jax.evaluate.config import resolve_evaluation as resolve_evaluation
