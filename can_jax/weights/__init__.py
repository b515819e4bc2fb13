"""Readers of encoder weights, and conversions to and from the layouts of other libraries."""
