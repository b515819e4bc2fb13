"""File formats of shards: TFRecord, tar and TFDS."""
