"""The store for asyncio programs: the same store, with transactions and snapshots as async context managers.

    from holdfast.engine import MemoryEngine, aio

    async with aio.open("data", MemoryEngine) as store:
        async with store.transaction() as tx:
            tx.put(b"key", b"value")
        async with store.snapshot() as view:
            view.get(b"key")

`aio.open` opens a store, and closes it at the end. `aio.AsyncStore(store)` is a face of a store that is open: for a
`GraphStore`, for a second event loop, or beside threads that use the store as before.

How it works: writers queue in the loop (`turns.py`). A transaction begins and is logged in the loop, where both take
microseconds, unless something would have to wait: another thread has the writer lock, a bound is reached, a plugin is
asked, the log needs room, or the engine does not stage. Then one thread of the store's own does it, and the loop goes
on. The loop is told of acknowledgements together, a group at a time (`answers.py`). So a task costs no thread.

docs/asyncio.md is the guide.
"""

from __future__ import annotations

from .answers import Answer
from .store import AsyncStore, open
from .transaction import AsyncTransaction

__all__ = ["Answer", "AsyncStore", "AsyncTransaction", "open"]
