"""Engines over a database with its own transactions, SQLite and RocksDB, and the overlay that lets them stage."""
