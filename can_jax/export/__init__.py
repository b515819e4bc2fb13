"""Export of weights to other libraries, and numerical verification of each file."""
