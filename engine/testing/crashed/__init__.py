"""Checks of an engine, under a store, on a simulated disk whose power is cut and whose operations fail."""
