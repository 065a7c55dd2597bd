"""Engines over a library with transactions of its own: SQLite and RocksDB, with an overlay that lets them stage."""
