"""Clusters whose members, clocks, disks and network are simulated, and whose histories are drawn from a seed."""
