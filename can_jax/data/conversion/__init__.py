"""Conversion of data sets to indexed TFRecord shards."""
