"""The store: an engine driven by a log, open in one process.

`store` is the whole; `write_path` and `group_commit` are how a transaction becomes durable, with `commit_queue` and
`watermarks` as their pure parts, and `ack_tracker` and `callbacks` around them; `checkpoints` is how the engine's
durable state follows; `backpressure` and `maintenance` are what goes on beside; `usability` is whether anything may;
`hooks` calls the plugins; `open_writable`, `open_read_only`, `full_disk` and `layout` are the directory.

`Store`, `Positions` and `Recovery` are imported when they are first used: who only looks at a directory loads no store.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .recovery_report import Recovery as Recovery
    from .store import Store as Store
    from .watermarks import Positions as Positions

_WHERE = {"Positions": "watermarks", "Recovery": "recovery_report", "Store": "store"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
