"""Consumers: those for whom log is kept although no lease is open, such as a backup target between two runs.

They stand in the document `CONSUMERS` beside the segments, so that they survive a restart. One that lags beyond its
bounds is dropped by name, not silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import document
from ..errors import Damaged, InvalidInput
from ..history import Position
from ..seams import Seams

CONSUMERS_MAGIC, CONSUMERS_VERSION = b"HFCONSUM", 1
MAX_CONSUMERS = 1000
MAX_NAME = 500


@dataclass(frozen=True, slots=True)
class Consumer:
    """One consumer: the log after `position` is kept for it. `seen_us` is when it last registered."""

    id: str
    name: str
    position: Position
    seen_us: int


class Consumers:
    """The consumers of one log. Thread-safe; every change is durable when the call returns."""

    def __init__(self, directory: Path, seams: Seams) -> None:
        self._path = directory / "CONSUMERS"
        self._seams = seams
        self._lock = seams.scheduler.lock()
        self._all: dict[str, Consumer] = {}
        if seams.files.exists(self._path):
            body = document.read(seams.files, self._path, CONSUMERS_MAGIC, CONSUMERS_VERSION)
            try:
                self._all = {i: Consumer(i, n, Position(t, c), s) for i, n, t, c, s in body["consumers"]}
            except (KeyError, TypeError, ValueError) as error:
                raise Damaged(f"lacks or garbles a field: {error}", path=str(self._path)) from error

    def list(self) -> list[Consumer]:
        return sorted(self._all.values(), key=lambda c: c.position.txid)

    def register(self, id: str, name: str, position: Position) -> None:
        """Add one, or move it to a later position. An earlier one than before is ignored.

        Raises:
            InvalidInput: too many, or a name that is too long.
        """
        if not 0 < len(id) <= 64 or len(name) > MAX_NAME:
            raise InvalidInput("a consumer's id has 1 to 64 characters and its name at most 500")
        with self._lock:
            known = self._all.get(id)
            if known is None and len(self._all) >= MAX_CONSUMERS:
                raise InvalidInput(f"there are {MAX_CONSUMERS} consumers already", hint="drop those no longer used")
            if known is not None and known.position.txid > position.txid:
                position = known.position
            self._save({**self._all, id: Consumer(id, name, position, self._seams.clock.now_us())})

    def drop(self, id: str) -> bool:
        """Forget one; whether it was there."""
        with self._lock:
            if id not in self._all:
                return False
            self._save({k: v for k, v in self._all.items() if k != id})
            return True

    def _save(self, consumers: dict[str, Consumer]) -> None:
        body = {"consumers": [[c.id, c.name, c.position.txid, c.position.chain, c.seen_us] for c in consumers.values()]}
        document.write(self._seams.files, self._path, CONSUMERS_MAGIC, CONSUMERS_VERSION, body)
        self._all = consumers
