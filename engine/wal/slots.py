"""Slots: each keeps log for somebody who holds no lease now, such as a backup target between two runs.

Slots are in the document `CONSUMERS` beside the segments, so they survive a restart. A slot that lags beyond its bounds
is dropped, and the log names it. A slot whose owner is in this process may be *minded*: then the owner has bounds of
its own, and drops it.

The document holds no data, so a store opens even if it is damaged. A damaged document is set aside. The slots in it are
then unknown, so one new slot stands for all of them and keeps all the log that is there. It is listed, can be dropped,
and is dropped when it lags too far, like any other. Meanwhile the owners of the lost slots register again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..env import Env
from ..errors import Damaged, DiskFull, InvalidInput, UnsupportedFormat
from ..model import document
from ..model.positions import Position

SLOTS_MAGIC, SLOTS_VERSION = b"HFCONSUM", 1
UNKNOWN = "0" * 32
"""The id of the slot that stands for all slots in a damaged document."""
MAX_SLOTS = 1000
MAX_NAME = 500

logger = logging.getLogger("holdfast.store")


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot: the log after `position` is kept for it. `seen_us`: when it last registered, as `Clock.now_us`."""

    id: str
    name: str
    position: Position
    seen_us: int


class Slots:
    """The slots of one log. Thread-safe. A change is durable when the call returns, except a drop on a full disk. That
    takes effect at once, because it makes room, and is written when there is room (`write_postponed`).

    Attributes:
        minded: ids of slots whose owners in this process see to it that they do not lag too far. The store does not
            drop them as long as it has their log.
    """

    def __init__(self, directory: Path, base: Position, env: Env, *, read_only: bool) -> None:
        """
        Args:
            directory, env: the log's directory, and the environment.
            base: where the log begins now.
            read_only: leave a damaged document where it is.

        Raises:
            UnsupportedFormat: a newer release wrote the document.
        """
        self._path = directory / "CONSUMERS"
        self._env = env
        self._lock = env.scheduler.lock()
        self._all: dict[str, Slot] = {}
        self.minded: set[str] = set()
        self._unwritten = False
        if env.files.exists(self._path):
            data = env.files.read(self._path)
            try:
                self._all = _decoded(data, self._path)
            except Damaged as error:
                self._rebuild(data, base, error, read_only=read_only)

    def _rebuild(self, data: bytes, base: Position, error: Damaged, *, read_only: bool) -> None:
        """Continue without the document. A copy is put beside it before it is replaced."""
        aside = self._aside()
        logger.warning("%s. The slots are unknown, so all the log that is there now is kept, within the bounds for "
                       "slots%s", error.message, "" if read_only else f"; set aside: {aside.name}")
        unknown = Slot(UNKNOWN, f"all slots in {aside.name}, which is damaged", base,
                       self._env.clock.now_us())
        self._all = {UNKNOWN: unknown}
        if not read_only:
            try:
                self._env.files.write_durably(aside, data)
                self._save(self._all)
            except (DiskFull, OSError) as failure:
                logger.warning("%s could not be replaced yet: %s", self._path, failure)

    def _aside(self) -> Path:
        number = 1
        while self._env.files.exists(aside := self._path.with_name(f"{self._path.name}.damaged-{number}")):
            number += 1
        return aside

    def list(self) -> list[Slot]:
        """All slots, the one that needs most log first."""
        return sorted(self._all.values(), key=lambda c: c.position.txid)

    def when_full(self, hint: str, size_after: Callable[[int], int], least: int) -> str:
        """The hint for a full disk: `hint`, and the slot that holds back most log.

        Args:
            hint: what else to do.
            size_after: gives the bytes of log after a transaction.
            least: a slot that holds back no more bytes than this is not mentioned.
        """
        held = [(size_after(c.position.txid), c) for c in self.list()]
        held = [(size, c) for size, c in held if size > least]
        if not held:
            return hint
        size, most = max(held, key=lambda found: found[0])
        others = f", and for {len(held) - 1} others" if len(held) > 1 else ""
        return (f"{hint}; {size:,} bytes of log are kept for the slot {most.name!r} (id {most.id}){others}: if it "
                "is gone, drop it (backup.drop_slot, holdfast slots drop)")

    def register(self, id: str, name: str, position: Position, *, seen_us: int | None = None) -> None:
        """Add a slot, or move it to a later position. An earlier position than before is ignored. `seen_us`: when it
        registered, if that was elsewhere; by default now. Raises `InvalidInput` if there are too many slots, or the id
        or name has the wrong length."""
        seen_us = self._env.clock.now_us() if seen_us is None else seen_us
        if not 0 < len(id) <= 64 or len(name) > MAX_NAME:
            raise InvalidInput(f"a slot's id has 1 to 64 characters and its name at most {MAX_NAME}")
        with self._lock:
            known = self._all.get(id)
            if known is None and len(self._all) >= MAX_SLOTS:
                raise InvalidInput(f"there are already {MAX_SLOTS} slots", hint="drop those no longer used")
            if known is not None and known.position.txid > position.txid:
                position = known.position
            self._save({**self._all, id: Slot(id, name, position, seen_us)})

    def drop(self, id: str) -> bool:
        """Remove a slot. Whether it was there."""
        with self._lock:
            if id not in self._all:
                return False
            left = {k: v for k, v in self._all.items() if k != id}
            try:
                self._save(left)
            except DiskFull as error:
                logger.warning("slot %s is dropped; this is written to disk when there is room: %s", id, error.message)
                self._all, self._unwritten = left, True
            return True

    def write_postponed(self) -> None:
        """Write a drop that found no room before."""
        with self._lock:
            if self._unwritten:
                with contextlib.suppress(DiskFull):
                    self._save(self._all)

    def _save(self, slots: dict[str, Slot]) -> None:
        body = {"consumers": [[c.id, c.name, c.position.txid, c.position.chain, c.seen_us] for c in slots.values()]}
        document.write(self._env.files, self._path, SLOTS_MAGIC, SLOTS_VERSION, body)
        self._all, self._unwritten = slots, False


def _decoded(data: bytes, path: Path) -> dict[str, Slot]:
    try:
        body = document.decode(data, SLOTS_MAGIC, SLOTS_VERSION, path)
    except UnsupportedFormat as error:
        if document.is_whole(data):
            raise
        raise Damaged("does not match its checksum", path=str(path)) from error
    try:
        return {i: Slot(i, n, Position(t, c), s) for i, n, t, c, s in body["consumers"]}
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"lacks or garbles a field: {error}", path=str(path)) from error
