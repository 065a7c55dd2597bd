"""Sources: where images and log come from, in this process and across a network.

`base` says what a source is; `local` is the store at hand. `wire` is what the two ends of a network agree on;
`service` (a plugin of the store), `server`, `routes` and `status` are one end, `client` is the other with its `line`s,
and `discovery` is how the two find one another on one machine.
"""
