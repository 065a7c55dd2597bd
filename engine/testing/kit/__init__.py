"""Checks that prove the kit itself, on any engine."""
