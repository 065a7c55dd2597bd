"""A target: the directory a backup is written to, and all that is done to it."""
