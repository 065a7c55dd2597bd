"""The store: an engine driven by a log, open in one process.

`store` is the whole; `write_path` and `group_commit` are how a transaction becomes durable, with `commit_queue` and
`watermarks` as their pure parts, and `ack_tracker` and `callbacks` around them; `backpressure` and `maintenance` are
what goes on beside; `hooks` calls the plugins; `opening` and `layout` are the directory.

`Store`, `Positions` and `Recovery` are imported when they are first used: who only looks at a directory loads no store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store import Positions as Positions
    from .store import Recovery as Recovery
    from .store import Store as Store


def __getattr__(name: str) -> Any:
    if name not in ("Positions", "Recovery", "Store"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import store

    return getattr(store, name)
