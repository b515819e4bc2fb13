"""A training run for a pod that is not there: does it fit, and how long would it take."""
