"""Selection of evaluation examples, and matching of the classes of training and test splits."""
