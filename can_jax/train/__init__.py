"""Pretraining: the loss of a batch, the train step, the training loop, and the setup of a run."""
