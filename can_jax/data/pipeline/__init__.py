"""From positions of the stream to batches on the devices."""
