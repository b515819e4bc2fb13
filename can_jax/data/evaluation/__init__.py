"""Labeled examples of evaluations: pairs of training and test splits."""
