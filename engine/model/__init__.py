"""What everything is about: positions, records, documents. No threads, and of files only what a document needs."""
