"""Data sources, the order of examples, and the loaders that transfer batches to the devices."""
