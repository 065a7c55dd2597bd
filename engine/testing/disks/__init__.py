"""Stand-ins for the file system: a simulated one, and the real one with faults."""
