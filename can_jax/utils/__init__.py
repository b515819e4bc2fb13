"""Utilities independent of training: errors, files, archives, CPU cores, and the import of
TensorFlow."""
