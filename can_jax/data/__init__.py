"""Images from files to the devices: sources, their order, and the loader."""
