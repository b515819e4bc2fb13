"""Augmentation: crops on the host, everything photometric on the device."""
