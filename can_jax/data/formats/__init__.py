"""Readers of TFRecords, tars, compressed files, label lists and the files of TFDS."""
