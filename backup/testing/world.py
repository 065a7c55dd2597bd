"""What the checks of backups share: a store with a model beside it, its target, and how they are compared.

A `World` is a `Modelled` store that notes the digest of its own view after each transaction, and takes backups.
Whatever comes of a backup (a read-only opening, `verify`, a restored store) must show one of these transactions
exactly, the one that it says it shows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ...engine.contract.engine import Engine
from ...engine.contract.plugin import Plugin
from ...engine.contract.transaction import Durability, Transaction
from ...engine.env import REAL, Env
from ...engine.errors import RestorePointOutOfRange
from ...engine.source.interface import Source
from ...engine.source.local import LocalSource
from ...engine.store.settings import Settings
from ...engine.store.store import Store
from ...engine.testing.support.contract import scratch
from ...engine.testing.support.crash_images import tree
from ...engine.testing.support.modelled import Modelled
from ...engine.testing.support.raising import raises
from ...engine.testing.support.workload import Operation, Workload
from ..connection import Connection
from ..info import info
from ..policy import Policy
from ..report import Bounds, Report, RestoreReport, VerifyReport
from ..repository.repository import Repository
from ..restore import restore
from ..run import run
from ..verify import verify
from .fault_injection import BusySource

SETTINGS = Settings(segment_bytes=128 << 10, keep_logs="1 transactions", heartbeat_s=0)
"""No more log is kept than must be."""


def moment(time_us: int) -> datetime:
    """A time in microseconds since the Unix epoch, as people give it."""
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time_us)


@contextmanager
def seen_in(what: str) -> Iterator[None]:
    """Add to what the block raises where it was found."""
    try:
        yield
    except Exception as error:
        error.add_note(f"seen in {what}")
        raise

Histories = list[list[Operation]]


class World(Modelled):
    """See the module's text. `target` is where backups go, unless another place is named."""

    def __init__(self, work: Workload, root: Path, *, env: Env = REAL, plugins: Sequence[Plugin] = ()) -> None:
        super().__init__(work, root, settings=SETTINGS, env=env, plugins=plugins)
        self.target = root / "target"
        self._added = 0

    def open(self) -> None:
        super().open()
        self._note()

    def _note(self) -> None:
        with self.store.snapshot() as view:
            digest = view.digest()
            known = self.digests.setdefault(view.txid, digest)
        assert digest == known, f"two digests of the state at transaction {view.txid}"

    # --- the store -------------------------------------------------------------------------------------------------

    def transact(self, operations: list[Operation], durability: Durability | None = "synced") -> Transaction:
        tx = super().transact(operations, durability)
        self._note()
        return tx

    def bulk(self, number: int) -> int:
        txid = super().bulk(number)
        self._note()
        return txid

    def load(self) -> None:
        """A bulk load."""
        self._added += 1
        self.bulk(self._added)

    def commit_all(self, history: Iterable[list[Operation]]) -> None:
        for operations in history:
            self.transact(operations)

    def add(self, count: int = 1) -> None:
        """Transactions that certainly change something."""
        for _ in range(count):
            self._added += 1
            self.write(self._added)

    def forget_target(self) -> None:
        """Have the store no longer keep log for its backups, and prune what it need not keep."""
        for slot in self.store.log.slots.list():
            self.store.log.slots.drop(slot.id)
        self.store.prune()

    def lose_log(self) -> None:
        """Have the store go on, and lose the log that the next incremental needs."""
        self.add()
        self.reopen()
        self.seal()
        self.add()
        self.store.checkpoint()
        self.forget_target()
        base, end = self.store.log.base.txid, self.bounds().last
        assert base > end, f"the log after {base} is kept, and nobody needs it"

    # --- backups ---------------------------------------------------------------------------------------------------

    def back_up(self, target: Path | None = None, *, source: Source | Store[Any, Any] | str | None = None,
                env: Env | None = None, engine: type[Engine[Any, Any]] | None = None,
                accept_branch: bytes | None = None, connection: Connection | None = None, **policy: Any) -> Report:
        """Run a backup that keeps no restore points for their age and compacts nothing, unless its policy says so. The
        restore points that it reports are those of the target."""
        report = run(source or self.store, target or self.target, engine=engine or self.work.engine,
                     options=self.work.opened_with, env=env or self.env, accept_branch=accept_branch,
                     connection=connection, policy=Policy(**{"keep_points": "none", "compact": None, **policy}))
        said, found = report.bounds, self.bounds(target)
        assert said == found, f"a run says that the target restores to {said}, and it restores to {found}"
        return report

    def back_up_busily(self, *steps: Callable[[], object]) -> Report:
        """A backup during which the store changes, one step at a time (see `BusySource`). The remaining steps are done
        before the copy is confirmed."""
        return self.back_up(source=self.busy_source(*steps))

    def busy_source(self, *steps: Callable[[], object]) -> BusySource:
        """The store as a source that changes meanwhile, one step at a time; the remaining ones before it confirms."""
        left = list(steps)

        def step() -> None:
            if left:
                left.pop(0)()

        def rest(what: str) -> None:
            while what == "confirm" and left:
                left.pop(0)()

        source = BusySource(LocalSource(self.store), step)
        source.before = rest
        return source

    @contextmanager
    def repository(self) -> Iterator[Repository]:
        """A new repository, in a directory."""
        with Repository.init(self.fresh("repository"), env=self.env) as made:
            yield made

    def compare_repository(self, repository: Repository, txid: int) -> None:
        """Restore a transaction from a repository, and compare it with the model."""
        place = self.fresh("restored")
        report = repository.restore(place, to_txid=txid, engine=self.work.engine, options=self.work.opened_with)
        assert report.txid == txid, f"asked for {txid}, restored to {report.txid}"
        with seen_in(f"the store that a repository restored to transaction {txid}"):
            self.compare_closed(place, txid)
        shutil.rmtree(place)

    def compact(self) -> Report:
        """An incremental, after which the log is compacted into the image however small it is."""
        return self.back_up(compact=0.0, compact_floor=0)

    def bounds(self, target: Path | None = None) -> Bounds:
        return info(target or self.target).bounds

    def restored(self, txid: int | None = None, *, target: Path | None = None,
                 at: datetime | None = None) -> tuple[Path, RestoreReport]:
        """A new place where the target is restored to a transaction or a time."""
        place = self.fresh("restored")
        return place, self.restore(place, target=target, to_txid=txid, at=at)

    def restore(self, place: Path, *, target: Path | None = None, **how: Any) -> RestoreReport:
        return restore(target or self.target, place, engine=self.work.engine, options=self.work.opened_with,
                       env=self.env, **how)

    def verify(self, target: Path | None = None) -> VerifyReport:
        return verify(target or self.target, engine=self.work.engine, options=self.work.opened_with, env=self.env)

    # --- comparing -------------------------------------------------------------------------------------------------

    def compare_restored(self, txid: int | None = None, *, target: Path | None = None,
                         at: datetime | None = None, goes_on: bool = False) -> int:
        """Restore, and compare with the model of the point that the report names; that point. Afterwards the store
        that was restored takes a transaction, if it `goes_on`."""
        place, report = self.restored(txid, target=target, at=at)
        assert txid is None or report.txid == txid, f"asked for {txid}, restored to {report.txid}"
        with seen_in(f"the store that was restored to transaction {report.txid}"):
            self.compare_closed(place, report.txid)
            if goes_on:
                self.recovered(place, report.txid)
        shutil.rmtree(place)
        return report.txid

    def verified(self, target: Path | None = None) -> int:
        """The last transaction of a target that is whole; `verify` finds the content that the store had there."""
        report = self.verify(target)
        last = report.bounds.last
        assert last in self.digests, f"verify finds a backup that ends at transaction {last}, which the store never had"
        same = report.digest == self.digests[last].hex()
        assert same, f"verify finds another digest at transaction {last} than the store had"
        return last

    def compare_target(self, txid: int, target: Path | None = None) -> None:
        """A whole target whose end is at `txid`: what `verify`, a read-only opening and a restore make of it."""
        target = target or self.target
        last = self.verified(target)
        assert last == txid, f"the backup ends at transaction {last}, not {txid}"
        with seen_in("the backup, opened read-only"):
            self.compare_closed(target, txid)
        restored = self.compare_restored(target=target, goes_on=True)
        assert restored == txid, f"a backup that ends at {txid} was restored to {restored}"

    def compare_points(self) -> Bounds:
        """Every restore point of the target, by txid, and the two just outside, which must be refused."""
        bounds = self.bounds()
        for txid in range(bounds.first, bounds.last + 1):
            self.compare_restored(txid)
        for outside in (bounds.first - 1, bounds.last + 1):
            with self.refuses_point(outside, bounds):
                self.restored(outside)
        return bounds

    @contextmanager
    def refuses_point(self, point: object, bounds: Bounds) -> Iterator[None]:
        """The block's restore must be refused, and make nothing."""
        before = sorted(os.listdir(self.root))
        with raises(RestorePointOutOfRange, f"a restore to {point} of a backup that restores to {bounds}"):
            yield
        assert sorted(os.listdir(self.root)) == before, f"a refused restore to {point} left something behind"

    def refused(self, kinds: type[BaseException] | tuple[type[BaseException], ...], what: str,
                attempt: Callable[[], object]) -> str:
        """The error of an attempt on the target, which must be refused and change no byte of it."""
        before = tree(self.target)
        with raises(kinds, what) as told:
            attempt()
        assert tree(self.target) == before, f"{what} was refused ({told.error}), and changed the target"
        return str(told.error)


@contextmanager
def world(work: Workload, *, env: Env = REAL, plugins: Sequence[Plugin] = ()) -> Iterator[World]:
    """A new store in a directory of its own, which goes in the end."""
    with scratch() as root, World(work, root, env=env, plugins=plugins) as made:
        yield made


def histories(work: Workload, at_most: int = 4) -> st.SearchStrategy[Histories]:
    """The operations of a few transactions, one after the other."""
    return st.lists(work.operations(), max_size=at_most)
