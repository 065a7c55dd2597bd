"""The store: an engine driven by a log, open in one process.

`store` puts the parts together. `write_path` and `group_commit` make a transaction durable; `commit_queue` and
`watermarks` are their pure parts, and `ack_tracker` and `callbacks` are around them. `checkpoints` brings the engine's
durable state forward. `backpressure` and `maintenance` work in the background. `usability` says whether the store can
be used. `hooks` calls the plugins. `open_writable`, `open_read_only`, `full_disk` and `layout` deal with the directory.

`Store`, `Positions` and `Recovery` are imported on first use, so a program that only inspects a directory loads less.
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
