"""Checks of an engine in processes that are killed."""
