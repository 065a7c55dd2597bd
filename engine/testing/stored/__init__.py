"""Checks of an engine under a real store."""
