"""Access to files on disks and in buckets: reading with retries, listing, patterns and splits."""
