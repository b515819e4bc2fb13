"""Formats of shards: TFRecord, tar and TFDS."""
