"""Sources: where images and log come from, in this process and across a network.

`interface` says what a source is; `local` is the store at hand; `http` is a source across a network, both ends.
"""
