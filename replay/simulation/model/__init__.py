"""An exhaustive check of the members' protocol, within bounds: `protocol.py` is the model, `explore.py` the search."""
