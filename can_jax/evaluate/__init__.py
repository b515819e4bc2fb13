"""Evaluation of pretrained encoders: protocols, their inputs and their reports."""
