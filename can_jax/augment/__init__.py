"""Augmentation: crops on the host, photometric operations and mixing on the device."""
