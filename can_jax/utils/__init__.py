"""General utilities, such as errors, files, archives, registries, settings and CPU cores."""
