"""A source across a network, both ends.

`wire` is what the two agree on. `service` (a plugin of the store), `server`, `routes`, `admission`, `limits` and
`status` are one end; `client` is the other, with its `connection`s. `discovery` is how the two find one
another on one machine.
"""
