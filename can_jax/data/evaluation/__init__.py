"""Labeled examples for evaluations: matched pairs of training and test splits."""
