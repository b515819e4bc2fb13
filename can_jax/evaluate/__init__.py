"""Is the representation any good? Protocols on frozen features."""
