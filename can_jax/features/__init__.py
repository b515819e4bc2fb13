"""Feature extraction, and classifiers, maps and quality metrics that are computed from features."""
