"""High availability: members of a cluster, one of which is the primary. See `docs/design.md`."""
