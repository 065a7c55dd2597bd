"""Checks of an engine by its contract alone, with nothing of the kit around it."""
