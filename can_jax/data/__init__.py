"""Data sources, the order of examples, and the loaders that bring batches to the devices."""
