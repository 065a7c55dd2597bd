"""The write-ahead log: its format, its segments, writing, reading, recovery and retention."""
