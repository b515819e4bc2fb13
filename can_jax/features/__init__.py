"""Extraction of image features, and classifiers, maps and quality metrics that use features."""
