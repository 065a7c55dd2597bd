"""What the contracts are made of: checks and workloads, models beside stores, crash images, processes, counters."""
