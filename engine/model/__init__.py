"""The shared data types: positions, records, documents. No threads, and only documents use files."""
