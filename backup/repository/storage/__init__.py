"""Where the objects of a repository are: a directory, a bucket, or storage of another author."""
