"""`ReplayContract`: what the two verbs, copy and replay, must make of an engine, check by check.

    class TestMine(ReplayContract):
        workload = KeyValues(MyEngine, put=..., items=...)

The checks are in the files beside this one: of redo by itself, and of copies that are rolled.
"""

from __future__ import annotations

from .redo import RedoChecks
from .rolled import RollChecks


# The last base's checks come first: redo is what the others stand on.
class ReplayContract(RollChecks, RedoChecks):
    """Properties of copies: torn, interrupted, replayed again, of a store that goes on.

    Subclass it and set `workload`, or pass it to `check_engine`.
    """
