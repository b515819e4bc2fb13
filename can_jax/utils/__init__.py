"""General utilities: errors, files, archives, registries, settings, CPU cores and TensorFlow."""
