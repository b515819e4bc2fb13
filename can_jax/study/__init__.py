"""Studies: sets of similar pretraining runs with one evaluation protocol and one report."""
