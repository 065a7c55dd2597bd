"""A store with a model beside it: `models[n]` is the content after transaction n.

Everything that the store shows is compared with the model at the transaction that it says it shows: by content, by the
engine's own check, and by digest, which must be the same wherever the same transaction is looked at. The model lives in
this process and outside the store's directory, so damage to the directory does not touch it.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...contract.engine import Engine
from ...contract.plugin import Plugin
from ...contract.transaction import Durability, Transaction
from ...contract.view import View
from ...env import REAL, Env
from ...store.recovery_report import Recovery
from ...store.settings import Settings
from ...store.store import Store
from .alike import alike
from .attended import doing
from .contract import scratch
from .crash_images import copy_running, log_of, tree
from .workload import Operation, Workload

SETTINGS = Settings(segment_bytes=128 << 10, keep_logs="for ever", heartbeat_s=0, relaxed_ms=20, wait_s=5)
"""Small and quiet: nothing happens without the check's knowledge."""
DURABILITIES: tuple[Durability, ...] = ("synced", "pipelined", "relaxed")
PATIENCE_S = 30
"""Seconds to wait for what must come."""


class Refused(Exception):
    """What a block or a plugin raises here."""


class Modelled:
    """See the module's text. A context manager that opens the store, a new one, and closes it.

    Attributes:
        work, engine: the workload, and the engine to open, which is the workload's.
        root: everything is made below it.
        settings, env, plugins: for each opening.
        path, store: the store at present.
        models: the content after each transaction.
        digests: by txid, as they were seen.
        tried: the model as of the transaction that was run last, committed or not.
        within: whether the calls of a transaction are being made. If they raised, it stays so.
    """

    work: Workload

    def __init__(self, work: Workload, root: Path, *, settings: Settings = SETTINGS, env: Env = REAL,
                 plugins: Iterable[Plugin] = ()) -> None:
        self.work = work
        self.engine: type[Engine[Any, Any]] = work.engine
        self.root = root
        self.settings, self.env, self.plugins = settings, env, list(plugins)
        self.models: list[Any] = [work.new_model()]
        self.digests: dict[int, bytes] = {}
        self.tried: Any = None
        self.within = False
        self.store: Store[Any, Any]
        self._made = 0
        self.path = self.fresh("store")

    def __enter__(self) -> Self:
        self._outer = sys.exception()
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self.store.close()
        except Exception:
            if kind is None:  # otherwise, report what was found first
                raise

    def fresh(self, name: str) -> Path:
        """A path where nothing is."""
        self._made += 1
        return self.root / f"{name}-{self._made}"

    def open(self) -> None:
        self.store = self.opened(self.path, plugins=self.plugins, env=self.env)

    def opened(self, path: Path, **how: Any) -> Store[Any, Any]:
        """A store of the workload's engine."""
        doing("open the store")
        return Store.open(path, self.engine, options=self.work.opened_with, settings=self.settings, **how)

    def reopen(self) -> None:
        """Close and open; everything must be there."""
        doing("close the store")
        self.store.close()
        self.open()
        self.found(self.last)

    def seal(self) -> None:
        """Begin a segment of the log, so that what is before may be pruned: a new epoch does."""
        self.store.log.writer.extend_history(self.store.history, self.store.log.epoch + 1)

    @property
    def last(self) -> int:
        """The last transaction that the model knows."""
        return len(self.models) - 1

    # --- transactions ----------------------------------------------------------------------------------------------

    def transact(self, operations: list[Operation], durability: Durability | None = "synced") -> Transaction:
        """Run one transaction. What the commit raises goes to the caller; `tried` is the model as if it had not."""
        doing("commit", operations)
        model = self.tried = self.models[-1].copy()
        tx: Transaction
        with self.store.transaction(durability) as tx:
            self.within = True
            self.work.run(tx, model, operations)
            self.within = False
        if tx.txid is None:
            same = alike(self.work.expected(model), self.work.expected(self.models[-1]))
            assert same, "a transaction that changed something ended without a payload"
        else:
            assert tx.txid == len(self.models), f"transaction {tx.txid} came after {self.last}"
            self.models.append(model)
        return tx

    def write(self, number: int, durability: Durability | None = "synced") -> Transaction:
        """One transaction that certainly adds something: the workload's `numbered`."""
        tx = self.transact(self.work.numbered(number), durability)
        assert tx.txid is not None, f"what numbered({number}) gives changed nothing"
        return tx

    def attachments(self) -> int:
        """How many files with bulk loads are beside its log."""
        directory = log_of(self.path) / "attachments"
        return len(list(directory.iterdir())) if directory.exists() else 0

    def bulk(self, number: int) -> int:
        """One bulk load. `tried` is its model, as with `transact`."""
        doing("load in bulk")
        model = self.tried = self.models[-1].copy()
        txid = self.store.bulk(self.work.bulk_load(number, model))
        assert txid == len(self.models), f"the bulk load {txid} came after {self.last}"
        self.models.append(model)
        return txid

    # --- looking ---------------------------------------------------------------------------------------------------

    def compare(self, view: View, models: list[Any] | None = None) -> None:
        """A view, with the model of its transaction: this store's, or that of a twin's `models`."""
        doing("read a view")
        of = self.models if models is None else models
        txid = view.txid
        assert txid < len(of), f"a view is at transaction {txid}, and the last one is {len(of) - 1}"
        content, expected = self.work.content(view), self.work.expected(of[txid])
        where = difference(content, expected)
        assert not where, f"the view at transaction {txid} is not what was written: {where}"
        found = list(view.check())
        assert not found, f"the engine's own check at transaction {txid} finds {found}"
        if of is self.models:
            self.note(view)

    def note(self, view: View) -> None:
        """The digest of a view, which must be that of every other view of the same transaction."""
        digest, txid = view.digest(), view.txid
        assert self.digests.setdefault(txid, digest) == digest, f"two digests of the state at transaction {txid}"

    def shows(self, txid: int, what: str = "the store", *, unsynced: bool = False) -> None:
        """Now, exactly everything up to `txid`."""
        with self.store.snapshot(unsynced=unsynced) as view:
            assert view.txid == txid, f"{what} shows transaction {view.txid}, not {txid}"
            self.compare(view)

    def found(self, txid: int) -> None:
        """The store was opened, and everything up to `txid` must be there."""
        self.shows(txid, "the store that was opened")

    @property
    def watermarks(self) -> bool:
        return self.work.watermarks

    def compare_closed(self, path: Path, txid: int, models: list[Any] | None = None) -> None:
        """A store or backup that nobody has open, with the model at `txid`. Looking changes nothing."""
        before = tree(path)
        with self.opened(path, read_only=True) as store, store.snapshot() as view:
            assert view.txid == txid, f"a read-only opening shows transaction {view.txid}, not {txid}"
            self.compare(view, models)
        assert tree(path) == before, "a read-only opening changed files"

    def crash_image(self) -> Path:
        """A copy of the store's directory as it is now."""
        image = self.fresh("image")
        copy_running(self.path, image)
        return image

    def recovered(self, path: Path, at_least: int, at_most: int | None = None) -> Recovery:
        """Open a crash image, which must show a transaction from `at_least` to `at_most` (by default the same), and
        take another one. Returns what its opening found."""
        highest = at_least if at_most is None else at_most
        with self.opened(path) as store:
            with store.snapshot() as view:
                right = at_least <= view.txid <= highest
                assert right, f"a crash image shows transaction {view.txid}, not {at_least}" + (
                    "" if highest == at_least else f" to {highest}")
                self.compare(view)
                model = self.models[view.txid].copy()
            with store.transaction() as tx:
                self.work.run(tx, model, self.work.numbered(10**12))
            with store.snapshot() as view:
                self.compare(view, [*self.models[:view.txid], model])
            return store.recovery


def difference(shown: Any, expected: Any) -> str:
    """Where two contents differ, in a few words; empty if they do not."""
    if alike(shown, expected):
        return ""
    short = reprlib.Repr()
    short.maxother = short.maxstring = short.maxlong = 60
    if not isinstance(shown, dict) or not isinstance(expected, dict):
        return f"it shows {short.repr(shown)}, the model {short.repr(expected)}"
    parts = [f"{short.repr(key)} is not there" for key in expected if key not in shown]
    parts += [f"{short.repr(key)} is there" for key in shown if key not in expected]
    parts += [f"{short.repr(key)} is {short.repr(shown[key])} instead of {short.repr(expected[key])}"
              for key in expected if key in shown and not alike(shown[key], expected[key])]
    return ", ".join(parts[:3]) + (f", and {len(parts) - 3} more" if len(parts) > 3 else "")


@contextmanager
def kept_with(work: Workload, before: list[Operation], **how: Any) -> Iterator[Modelled]:
    """A store that holds a drawn transaction and number 0."""
    with scratch() as root, Modelled(work, root, **how) as kept:
        kept.transact(before)
        kept.write(0)
        yield kept
