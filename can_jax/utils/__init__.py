"""Helpers that know nothing of training: errors, files, cores, archives, and TensorFlow's door."""
