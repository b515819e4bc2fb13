"""A re-export of `default_evaluation`, at the path from which evaluation recipes import it."""

from can_jax.config.evaluation import default_evaluation as default_evaluation
