"""General utilities, for example for errors, files, registries, settings and CPU cores."""
