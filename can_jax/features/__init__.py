"""Feature extraction, and metrics of features as functions of arrays."""
