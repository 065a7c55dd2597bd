"""What stands in for the file system: one that is simulated, and the real one with faults."""
