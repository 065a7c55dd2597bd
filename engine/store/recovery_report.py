"""What opening a store found and did."""

from __future__ import annotations

from dataclasses import dataclass

from ..wal.log import Log


@dataclass(frozen=True, slots=True)
class Recovery:
    """See the module's text.

    Attributes:
        clean: the log had been closed properly.
        replayed: how many transactions were replayed over the engine's durable state.
        cut_bytes, cut_path, cut_offset: a torn end of the log that was cut. It held nothing acknowledged.
        rewritten_bytes: bytes written again because they may have been in the page cache only.
    """

    clean: bool
    replayed: int
    cut_bytes: int
    cut_path: str | None
    cut_offset: int
    rewritten_bytes: int

    @classmethod
    def of(cls, log: Log, replayed: int) -> Recovery:
        found = log.recovery
        return cls(found.clean, replayed, found.cut_bytes, found.path if found.cut_bytes else None, found.cut_offset,
                   found.rewritten_bytes)
