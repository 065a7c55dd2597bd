"""What proves copying and replaying themselves, on any engine; see `holdfast.backup.testing.kit`."""
