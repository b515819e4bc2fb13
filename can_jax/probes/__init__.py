"""Metrics of representations, as functions of arrays: kNN, linear heads, few-shot, calibration."""
