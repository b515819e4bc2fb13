"""`default_evaluation`, at the path that recipes of evaluations import it from."""

from can_jax.config.evaluation import default_evaluation as default_evaluation
