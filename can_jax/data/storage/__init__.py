"""Files on disks and in buckets: reading with retries, listing, patterns, splits."""
