"""Plugins: hooks at the moments of a store's life.

A plugin subclasses `Plugin` and overrides what it needs; a moment that no plugin overrides costs nothing. Several
plugins may listen to one moment; their order is the order they were given to `open`. Backup service, archiver and
members are plugins like anyone's.

======================  ==================================================================  ===========================
moment                  may                                                                 if it raises
======================  ==================================================================  ===========================
opened, closing         start and stop what it runs; only those whose *opened* returned     the open fails, cleanly;
                        are told *closing*, so one that raises cleans up after itself       closing goes on
committing(transaction)       look, add through the engine's own transaction, refuse; under the   rolled back; the
                        caller writer lock, so be quick (`Settings.hook_s`) and commit nothing     gets `RolledBack`
                        from it yourself; of a bulk load, `tx.bulk`, look or refuse
final(transaction)            look at the transaction once more, after the last addition; whoever       as committing
                        changes it has it rolled back
logged(range)           work on `range.records`; return a `Condition` that holds their      `ConditionNotMet`; the
                        acknowledgement until it is met                                     record is durable
published(records)      observe                                                             logged; the commit stands
checkpointed, sealed    observe                                                             logged
pruning(segments)       return a reason to keep them                                        logged; the log is kept
fault(error)            observe what poisoned the store                                     logged
forked()                in a child process: drop descriptors, say goodbye to nobody         logged
======================  ==================================================================  ===========================
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..env import Env
from ..model.positions import History, Position
from ..model.records import LogRange, Record, SegmentInfo
from .transaction import Durability, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What must come true before the transactions of one `LogRange` count as acknowledged.

    Conditions are cumulative: meeting one meets all earlier ones of the same plugin.

    Attributes:
        met: done without error when it is met; with an error when it never will be.
        timeout: seconds after which a waiting commit gives up.
        gates_publication: True: nobody sees the transaction before it is met, and when the time is over the commit
            raises `ConditionNotMet` and the watermark stays. False: it is published once durable, and when the time is
            over the commit raises `ConditionNotMet` once and the transaction counts as acknowledged.
        name: who wants it, for messages.
    """

    met: Future[Any]
    timeout: float
    gates_publication: bool
    name: str


class LogCursor(Protocol):
    """A place in a store's log that moves forward. For one thread at a time.

    Attributes:
        txid: the last transaction that was passed.
    """

    txid: int

    def read(self, upto: int | None = None) -> Iterator[Record]:
        """Durable records after the cursor, in order, up to and with `upto` (the durable end, without). Costs what is
        new. Raises `LogPruned`, `AheadOfSource`, `Diverged`, `Damaged`."""


class LogHandle(Protocol):
    """What a plugin may rely on of a store's log. From any thread."""

    @property
    def base(self) -> Position:
        """The position before the first record that is here."""

    @property
    def end(self) -> Position:
        """The durable end."""

    def cursor(self, after: int | Position) -> LogCursor:
        """A cursor behind a transaction. With a position, its chain must be the log's."""

    def chain_at(self, txid: int) -> bytes:
        """The chain at a durable transaction, which is one in the log, or the base's. Costs one look-up."""


class StoreHandle(Protocol):
    """What a plugin may rely on of the store that it was given. `Store` has more; a plugin that uses more is bound to
    this release. From any thread. See `Store` for what these calls do and raise."""

    @property
    def directory(self) -> Path: ...
    @property
    def instance(self) -> str: ...
    @property
    def history(self) -> History: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def env(self) -> Env: ...
    @property
    def log(self) -> LogHandle: ...
    @property
    def durable(self) -> Position: ...
    @property
    def published(self) -> Position: ...
    @property
    def poisoned(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    def transaction(self, durability: Durability | None = None) -> AbstractContextManager[Any]: ...
    def bulk(self, load: Any) -> int: ...
    def wait(self, txid: int, timeout: float | None = None) -> None: ...
    def snapshot(self, *, unsynced: bool = False, at_least: int | None = None) -> Any: ...
    def checkpoint(self) -> Position: ...
    def prune(self) -> int: ...
    def status(self) -> dict[str, Any]: ...


class Plugin:
    """Base of plugins. Override the moments you need."""

    def opened(self, store: StoreHandle) -> None:
        """The store is open and recovered. If this raises, let go of what it started: `closing` will not be told. Where
        a copied image was opened, a `checkpointed` may have come before."""

    def closing(self, store: StoreHandle) -> None:
        """The store is about to close. Told to plugins whose `opened` returned. Others may still commit for a moment,
        and what is committed is checkpointed, so observing moments may follow."""

    def committing(self, tx: Transaction) -> None:
        """A transaction is about to be logged, or a bulk load, which is then `tx.bulk`; the transaction takes no
        additions then."""

    def final(self, tx: Transaction) -> None:
        """The same transaction, as it will be logged."""

    def logged(self, batch: LogRange) -> Condition | None:
        """These transactions are durable. Not called on the thread that syncs."""
        return None

    def published(self, records: Sequence[Record]) -> None:
        """Views show these transactions now."""

    def checkpointed(self, position: Position) -> None:
        """The engine's durable state reached this position."""

    def sealed(self, segment: SegmentInfo) -> None:
        """A segment is complete. The last one, if it is small, may be gone on with after an opening: then it is told
        again, with the same ordinal and more in it."""

    def pruning(self, segments: Sequence[SegmentInfo]) -> str | None:
        """These segments are about to be deleted. A returned text is a veto and says why."""
        return None

    def fault(self, error: BaseException) -> None:
        """The store is poisoned, because of this."""

    def forked(self) -> None:
        """This is a child process, and the store stayed with its parent."""
