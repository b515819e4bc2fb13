"""The input pipeline, which turns positions in the training stream into batches on the devices."""
