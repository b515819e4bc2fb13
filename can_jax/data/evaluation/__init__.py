"""Selection of the examples for evaluations, and pairs of training and test splits with the same
classes."""
