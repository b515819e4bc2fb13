"""Access to files on disks and in object stores: reading with retries, listing, patterns and
splits."""
