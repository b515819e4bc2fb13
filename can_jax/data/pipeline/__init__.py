"""The input pipeline: from positions in the stream of examples to batches on the devices."""
