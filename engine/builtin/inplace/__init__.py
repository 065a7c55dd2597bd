"""Records in cells of fixed size, written in place: the engine whose image moves while it is copied."""
