"""The repository: the whole past of a store, as immutable objects in a directory or a bucket."""
