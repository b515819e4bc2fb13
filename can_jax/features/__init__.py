"""Extraction of image features. Classifiers, maps and quality metrics that use the features."""
