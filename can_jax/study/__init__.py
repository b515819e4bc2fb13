"""Studies: sets of similar pretraining runs, evaluated alike and compared in a report."""
