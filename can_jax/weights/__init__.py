"""Reading and naming of encoder weights in the layouts of other libraries."""
