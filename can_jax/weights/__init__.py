"""The weights in the layouts of other libraries."""
