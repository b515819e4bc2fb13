"""Features of images, and metrics of features as functions of arrays."""
