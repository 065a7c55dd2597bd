"""Plugins: hooks at the moments of a store's life.

A plugin subclasses `Plugin` and overrides what it needs; a moment that no plugin overrides costs nothing. Several
plugins may listen to one moment; their order is the order they were given to `open`. Backup service, archiver and
members are plugins like anyone's.

======================  ==================================================================  ===========================
moment                  may                                                                 if it raises
======================  ==================================================================  ===========================
opened, closing         start and stop what it runs; only those whose *opened* returned     the open fails, cleanly;
                        are told *closing*, so one that raises cleans up after itself       closing goes on
committing(draft)       look, add through the engine's own transaction, refuse; under the   rolled back; the caller
                        writer lock, so be quick (`Settings.hook_s`) and commit nothing     gets `RolledBack` from it
                        yourself; of a bulk load, `draft.bulk`, look or refuse
final(draft)            look at the draft once more, read-only, after the last addition     as committing
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

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from .contract import Durability, Transaction
from .errors import SettingError
from .history import History, LogRange, Position, Record, SegmentInfo
from .seams import Scheduler, Seams
from .shown import shown

logger = logging.getLogger("holdfast.plugins")


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
    def seams(self) -> Seams: ...
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

    def committing(self, draft: Transaction) -> None:
        """A draft is about to be logged, or a bulk load, which is then `draft.bulk`; the draft takes no additions
        then."""

    def final(self, draft: Transaction) -> None:
        """The same draft, as it will be logged."""

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


_MOMENTS = ("committing", "final", "logged", "published", "checkpointed", "sealed", "pruning", "fault", "forked")


class Hooks:
    """The plugins of one store, sorted by moment: an attribute per moment holds the bound hooks that override it.
    `closing` holds those of the plugins that were opened."""

    closing: tuple[Callable[[StoreHandle], None], ...]
    committing: tuple[Callable[[Transaction], None], ...]
    final: tuple[Callable[[Transaction], None], ...]
    logged: tuple[Callable[[LogRange], Condition | None], ...]
    published: tuple[Callable[[Sequence[Record]], None], ...]
    checkpointed: tuple[Callable[[Position], None], ...]
    sealed: tuple[Callable[[SegmentInfo], None], ...]
    pruning: tuple[Callable[[Sequence[SegmentInfo]], str | None], ...]
    fault: tuple[Callable[[BaseException], None], ...]
    forked: tuple[Callable[[], None], ...]

    def __init__(self, plugins: Iterable[Plugin], scheduler: Scheduler) -> None:
        self.plugins = tuple(plugins)
        self._scheduler = scheduler
        for plugin in self.plugins:
            if not isinstance(plugin, Plugin):
                raise SettingError(f"{shown(plugin)} is not a plugin", hint="pass objects of Plugin subclasses")
        self.closing = ()
        for moment in _MOMENTS:
            setattr(self, moment, self._overriding(moment, self.plugins))

    @staticmethod
    def _overriding(moment: str, plugins: Iterable[Plugin]) -> tuple[Callable[..., Any], ...]:
        return tuple(getattr(p, moment) for p in plugins if getattr(type(p), moment) is not getattr(Plugin, moment))

    def open(self, store: StoreHandle) -> None:
        """Tell *opened*, in order. What one raises, this raises, and those from that one on will not be told *closing*.
        """
        for plugin in self.plugins:
            plugin.opened(store)
            self.closing += self._overriding("closing", [plugin])

    def tell(self, moment: str, *args: Any) -> None:
        """Call every hook of an observing moment; what they raise is logged and goes no further."""
        for hook in getattr(self, moment):
            try:
                hook(*args)
            except BaseException as error:
                if not isinstance(error, Exception) and self._scheduler.is_main():
                    raise  # it may be a signal's; in the kit's own threads it would end what others wait for
                logger.exception("plugin hook %s raised", getattr(hook, "__qualname__", hook))


def listed(plugins: Iterable[Plugin | str]) -> list[Plugin]:
    """Plugins given as objects and as names of registered ones, as objects. Raises `SettingError`."""
    if isinstance(plugins, str) or not isinstance(plugins, Iterable):
        raise SettingError(f"plugins={shown(plugins)} is no list",
                           hint="pass a list of plugins, or of registered names")
    return [find_plugin(plugin) if isinstance(plugin, str) else plugin for plugin in plugins]


def find_plugin(name: str) -> Plugin:
    """Make the plugin registered as `name` in the entry-point group `holdfast.plugins`.

    Raises:
        SettingError: there is none, or it cannot be made.
    """
    plugin: Plugin = _find("holdfast.plugins", name, Plugin)()
    return plugin


def find_engine(name: str) -> Any:
    """The engine class registered as `name` in the entry-point group `holdfast.engines`.

    Raises:
        SettingError: there is none.
    """
    from .contract import Engine

    return _find("holdfast.engines", name, Engine)


def _find(group: str, name: str, base: type) -> Any:
    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        raise SettingError(f"no {base.__name__.lower()} named {name!r}",
                           hint=f"installed: {', '.join(sorted(found)) or 'none'}")
    made = found[name].load()
    if not (isinstance(made, type) and issubclass(made, base)):
        raise SettingError(f"{group} entry {name!r} is not a subclass of {base.__name__}")
    return made
