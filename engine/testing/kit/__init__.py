"""What proves the kit itself, on any engine; `holdfast.backup.testing.kit.KitContract` has all of it."""
