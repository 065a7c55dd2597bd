"""Plugins: hooks at the moments of a store's life.

A plugin subclasses `Plugin` and overrides what it needs. A moment that no plugin overrides costs nothing. Several
plugins may listen to one moment; they are called in the order in which they were given to `open`. The backup service is
an ordinary plugin.

======================  ==================================================================  ===========================
moment                  may                                                                 if it raises
======================  ==================================================================  ===========================
opened, closing         start and stop what it runs; *closing* is called only if *opened*   the open fails, cleanly;
                        returned, so an *opened* that raises must clean up                  closing continues
beginning               return an `Obstacle`: the transaction waits until there is none, at rolled back
                        most `Settings.wait_s`, and is then rolled back. No lock is held
committing(tx)          look, make changes through `tx`, or refuse; with a bulk load        rolled back; the caller
                        (`tx.bulk`), only look or refuse. The writer lock is held: be       gets `RolledBack`
                        quick (`Settings.hook_s`), and do not commit from here
final(tx)               look at the transaction after the last change; a plugin that        as committing
                        changes it has it rolled back
attached(attachment)    wait, or refuse: the file of a bulk load is durable, and its        rolled back
                        record is logged next. The writer lock is held
logged(batch)           work on `batch.records`; return a `Condition` that holds back       `ConditionNotMet`; the
                        their acknowledgement until it is met                               records are durable
published(records)      observe                                                             logged; the commit stands
checkpointed, sealed    observe                                                             logged
pruning(segments)       return a reason to keep them                                        logged; the log is kept
fault(error)            observe what poisoned the store                                     logged
role_changed(role, n)   observe, in a member of a cluster                                   logged
forked()                in a child process: close descriptors, send nothing                 logged
======================  ==================================================================  ===========================
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..env import Env
from ..model.positions import History, Position
from ..model.records import Attachment, LogRange, Record, SegmentInfo
from .transaction import Durability, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What must come true before the transactions of one `LogRange` count as acknowledged.

    Conditions are cumulative: meeting one meets all earlier ones of the same plugin.

    Attributes:
        met: a future: resolve it when the condition is met, or set an exception if it never will be.
        timeout: seconds after which the condition is late. The commit then raises `ConditionNotMet`.
        gates_publication: True: nobody sees the transaction before the condition is met, and it stays open when late.
            False: the transaction is published once it is durable, and counts as acknowledged when late.
        name: who set the condition, for messages.
    """

    met: Future[Any]
    timeout: float
    gates_publication: bool
    name: str


class Obstacle(NamedTuple):
    """Why a transaction cannot begin now, for the message of the error that its caller gets if that lasts; and what to
    do about it."""

    why: str
    hint: str


class Fact(NamedTuple):
    """One thing that a plugin shows of itself.

    Attributes:
        name: lower-case words with underscores, which begin with what the plugin does: `archive_lag_bytes`.
        value: a number, which is a metric too; a text; or None: it is not known now.
        text: what it is, in a few words.
        kind: of the metric: `gauge` or `counter`.
        of: what it is about, if a store may have several such plugins. It is the metric's label `of`.
    """

    name: str
    value: float | str | None
    text: str
    kind: str = "gauge"
    of: str = ""


class LogCursor(Protocol):
    """A place in a store's log that moves forward. For one thread at a time.

    Attributes:
        txid: the last transaction that was passed.
    """

    txid: int

    def read(self, upto: int | None = None) -> Iterator[Record]:
        """Durable records after the cursor, in order, up to and including `upto` (None: the durable end). O(log read).
        Raises `LogPruned`, `AheadOfSource`, `Diverged`, `Damaged`."""


class LogHandle(Protocol):
    """What a plugin may use of a store's log. From any thread."""

    @property
    def base(self) -> Position:
        """The position before the first record that is here."""

    @property
    def end(self) -> Position:
        """The durable end."""

    def cursor(self, after: int | Position) -> LogCursor:
        """A cursor after a transaction. If a position is given, its chain must agree with the log's."""

    def chain_at(self, txid: int) -> bytes:
        """The chain at a durable transaction in the log, or at the base. Reads part of one segment."""


class StoreHandle(Protocol):
    """What a plugin may use of its store. From any thread. See `Store` for what these calls do and raise. `Store` has
    more, but a plugin that uses more may break with the next release."""

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
        """The store is open and recovered. If this raises, it must first release what it started, because `closing`
        will not be called. If a copied image was opened, a `checkpointed` may have come before. On the opening thread.
        """

    def closing(self, store: StoreHandle) -> None:
        """The store is about to close; called only if `opened` returned. Others may still commit for a moment, and a
        checkpoint follows, so observing moments may still come. On the closing thread."""

    def beginning(self) -> Obstacle | None:
        """A transaction is about to begin. If it must not yet, return why: it is asked again every few milliseconds. On
        the thread that begins it, without a lock; so several may pass at once. Be quick: every transaction asks."""
        return None

    def committing(self, tx: Transaction) -> None:
        """A transaction is about to be logged. If it is a bulk load, `tx.bulk` has the load, and the transaction takes
        no changes. On the committing thread."""

    def final(self, tx: Transaction) -> None:
        """The same transaction, as it will be logged. On the committing thread."""

    def attached(self, attachment: Attachment) -> None:
        """A bulk load's file is durable in the log's directory. If all plugins return, its record is logged. You may
        wait here, for a copy of the file elsewhere, for instance; other writers wait too. On the loading thread."""

    def logged(self, batch: LogRange) -> Condition | None:
        """These transactions are durable. On the store's thread for conditions, never the one that syncs."""
        return None

    def published(self, records: Sequence[Record]) -> None:
        """Views now show these transactions. On the thread that published them, often a committing one: be quick."""

    def checkpointed(self, position: Position) -> None:
        """The engine's durable state has reached this position. On the thread that made the checkpoint."""

    def sealed(self, segment: SegmentInfo) -> None:
        """A segment is complete. The log may continue in a small last segment after an opening. The segment is then
        reported again, with the same ordinal and more in it. On the maintenance thread, or the closing thread."""

    def pruning(self, segments: Sequence[SegmentInfo]) -> str | None:
        """These segments are about to be deleted. To veto that, return the reason. On the pruning thread."""
        return None

    def fault(self, error: BaseException) -> None:
        """The store is poisoned because of this error. On the thread that failed."""

    def role_changed(self, role: str, epoch: int) -> None:
        """The store's member of a cluster is `primary`, `candidate` or `follower` now. A member that is deposed closes
        its store and opens it again: `closing` and `opened` come before. On a thread of the member's: be quick."""

    def facts(self) -> Sequence[Fact]:
        """What `Store.status`, the metrics and the page of the backup service show of this plugin. It keeps to its own
        memory: no I/O. From any thread."""
        return ()

    def forked(self) -> None:
        """This is a forked child. The store stayed with the parent."""
