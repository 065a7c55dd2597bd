"""Copies of a store and of its log: seeded while it is written, rolled to any transaction, refused where they do not
fit.

The store is a real one with a model beside it (`Modelled`), and nothing happens in it that is not asked for. It is
copied through its source, as a backup and a replica do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any
from unittest.mock import patch

from ...engine.contract.engine import BulkEngine, Context, Engine
from ...engine.env import REAL
from ...engine.errors import (
    AheadOfSource,
    Diverged,
    ForeignStore,
    HoldfastError,
    InvalidInput,
    LogPruned,
    OtherBranch,
)
from ...engine.model.positions import Branch, History, Position
from ...engine.model.records import Record
from ...engine.source.interface import Confirmation, compare
from ...engine.source.local import LocalSource
from ...engine.store.layout import Layout
from ...engine.store.settings import Settings
from ...engine.testing.disks.quiet import SetClock, quiet_env
from ...engine.testing.engine.transactions import several
from ...engine.testing.support.contract import Contract, check, scratch
from ...engine.testing.support.crash_images import copy_running, state_of
from ...engine.testing.support.modelled import Modelled
from ...engine.testing.support.raising import raises
from ...engine.testing.support.workload import Operation, Workload
from ...engine.wal.log import Log
from ...engine.wal.writer import LogOptions
from .. import copy, files
from ..roll import fetch, history_at, roll

SETTINGS = Settings(segment_bytes=128 << 10, keep_logs="1 transactions", heartbeat_s=0)
"""As little log as may be is kept, so that what holds it shows."""
_LOG = LogOptions(preallocate=False)
_PIECE = 500
"""Bytes of an image that are read at a time."""
_FILL = 400
_ROTATIONS = 60


class BusySource(LocalSource):
    """A source whose store changes before each piece of its image is read, and in the middle of it."""

    def __init__(self, kept: Modelled, change: Callable[[], None]) -> None:
        super().__init__(kept.store)
        self._change, self._turn = change, Lock()

    def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        with self._turn:
            self._change()
            first = super().read_image(lease_id, name, offset, length // 2)
            self._change()
            return first + super().read_image(lease_id, name, offset + length // 2, length - length // 2)


class Seeded:
    """A copy of a store in the making: image, confirmation and log, in the layout of a store at `root`."""

    def __init__(self, kept: Modelled, source: LocalSource, root: Path) -> None:
        """Copies the image. `source` goes on being asked for the log."""
        self._kept, self._source = kept, source
        self.root = root
        self.generation = Layout(root, REAL.files).generation(1)
        with patch.object(files, "CHUNK_BYTES", _PIECE):
            state = copy.begin(source, self.generation.path, "a check", bytes(16), env=REAL, ttl=60)
            self.grant = state.grant
            copy.copy_image(source, state, self.generation.path, env=REAL)
        self.confirmed: Confirmation = source.confirm(self.grant.id)
        self.image_position = self.grant.position
        self.consistent_from = self.confirmed.consistent_from if self.grant.moving else self.image_position

    def fetched(self, upto: Position | None = None) -> Log:
        """Its log, up to a position or to what was confirmed as published. The caller closes it."""
        history = self._kept.store.history
        REAL.files.remove_tree(self.generation.log)
        log = Log.create(self.generation.log, history_at(history, self.image_position), self.image_position,
                         engine=self._kept.engine.name, last_time_us=self.grant.time_us, options=_LOG, env=REAL)
        try:
            fetch(self._source, self.grant.id, log, upto or self.confirmed.published, history)
        except BaseException:
            log.close()
            raise
        return log

    def engine(self) -> Engine[Any, Any]:
        """Opened as a copy that was taken from the image's position on."""
        context = Context(options=self._kept.work.options)
        return self._kept.engine.open(self.generation.state, context, at=self.image_position)

    def release(self) -> None:
        self._source.release(self.grant.id)


@contextlib.contextmanager
def quietly_kept(work: Workload, clock: SetClock | None = None, seed: int = 0) -> Iterator[Modelled]:
    """A store that does nothing by itself. Its ids are drawn from the seed."""
    env = quiet_env(REAL.files, clock=clock, seed=seed)
    with scratch() as place, Modelled(work, place, settings=SETTINGS, env=env) as kept:
        yield kept


def fill(kept: Modelled, segments: int = 1) -> None:
    """Write until so many more segments are sealed, and checkpoint."""
    wanted = len(kept.store.log.segments()) + segments
    for _ in range(_ROTATIONS):
        first = 10**6 + _FILL * len(kept.models)
        kept.transact([operation for n in range(_FILL) for operation in kept.work.numbered(first + n)])
        if len(kept.store.log.segments()) >= wanted:
            break
    kept.store.checkpoint()


def compare_rolled(kept: Modelled, engine: Engine[Any, Any], txid: int, what: str) -> None:
    with engine.view() as view:
        assert view.txid == txid, f"{what} shows transaction {view.txid}, not {txid}"
        kept.compare(view)


class RollChecks(Contract):
    """See the module's text."""

    @check()
    def test_a_copy_seeded_during_writes_is_right(self, work: Workload) -> None:
        """A copy whose source goes on committing and making checkpoints, before each piece that is read and in the
        middle of it, equals the model at the position that the source confirms, and at each one after it. What was
        committed while it was copied is in it."""
        def claim(before: list[list[Operation]], during: list[list[Operation]]) -> None:
            with quietly_kept(work) as kept:
                kept.write(1)
                for operations in before:
                    kept.transact(operations)
                kept.store.checkpoint()
                kept.write(2)
                left = list(during)

                def change() -> None:
                    if left:
                        kept.transact(left.pop(0) + work.numbered(10 + len(left)))
                        if len(left) % 2 == 0:
                            kept.store.checkpoint()

                seeded = Seeded(kept, BusySource(kept, change), kept.fresh("copy"))
                last = kept.last
                kept.write(3)
                log = seeded.fetched()
                assert log.end.txid == last, f"{last} were committed when the copy was whole, and it ends at {log.end}"
                engine = seeded.engine()
                for txid in range(seeded.consistent_from.txid, last + 1):
                    roll(engine, log, txid, durable=True)
                    compare_rolled(kept, engine, txid, "a copy seeded during writes, rolled,")
                engine.close()
                log.close()
                seeded.release()

        self.prove(claim, examples=10, before=several(work, 2), during=several(work, 6))

    @check()
    def test_rolling_to_any_transaction_gives_the_model_there(self, work: Workload) -> None:
        """An image and the log after it, rolled to any transaction from the image's position on, durably or in memory,
        give exactly the state at that transaction, bulk loads included; rolled in two goes as in one."""
        def claim(before: list[list[Operation]], after: list[list[Operation]]) -> None:
            with quietly_kept(work) as kept:
                kept.write(1)
                for operations in before:
                    kept.transact(operations)
                kept.store.checkpoint()
                source = LocalSource(kept.store)
                seeded = Seeded(kept, source, kept.fresh("copy"))
                for operations in after:
                    kept.transact(operations)
                if issubclass(work.engine, BulkEngine):
                    kept.bulk(2)
                kept.write(3)
                seeded.confirmed = source.confirm(seeded.grant.id)
                log = seeded.fetched(kept.store.published)
                for txid in range(seeded.image_position.txid, kept.last + 1):
                    copied = kept.fresh("state")
                    copy_running(seeded.generation.state, copied)
                    engine = kept.engine.open(copied, Context(options=work.options), at=seeded.image_position)
                    middle = (seeded.image_position.txid + txid) // 2
                    roll(engine, log, middle, durable=True)
                    rolled = roll(engine, log, txid, durable=txid % 2 == 0)
                    assert rolled.position.txid == txid, f"a roll to {txid} came to {rolled.position}"
                    compare_rolled(kept, engine, txid, f"a copy from {seeded.image_position} rolled to {txid}")
                    engine.close()
                log.close()
                seeded.release()

        self.prove(claim, examples=6, before=several(work, 2), after=several(work, 3))

    @check()
    def test_order_is_enforced_and_gaps_are_refused(self, work: Workload) -> None:
        """A log takes records in their order only, without gaps, and of its own history only. Log that is no longer
        there is an error for whoever asks: a reader, a lease, a copy, a state that needs it."""
        with quietly_kept(work) as kept:
            early = Seeded(kept, LocalSource(kept.store), kept.fresh("early"))
            for number in range(1, 5):
                kept.write(number)
            log, source = kept.store.log, LocalSource(kept.store)
            records = list(log.read(0))
            other = Log.create(kept.fresh("log"), kept.store.history, log.base, engine=work.engine.name, options=_LOG,
                               env=REAL)
            for record, what in ((records[1], "the second record first"), (records[3], "a record after a gap"),
                                 (_altered(records[0], log.base), "a record that says it is of another chain")):
                with raises(InvalidInput, what):
                    other.writer.append_record(record)
            other.writer.append_record(records[0])
            with raises(InvalidInput, "a record that is there already"):
                other.writer.append_record(records[0])
            other.writer.sync()
            assert other.end == records[0].position, f"after what was refused, the log ends at {other.end}"
            early.release()
            fill(kept, 2)
            kept.store.prune()  # unless the store did by itself
            assert kept.store.log.base != other.base, "log that nobody needs is not pruned"
            _refuse_pruned(kept, source, early, other)
            other.close()

    @check()
    def test_two_histories_never_mix(self, work: Workload) -> None:
        """Two stores at the same transaction with other contents are told apart wherever they meet: store by store id,
        twin from twin by chain, branch by branch; and the state of one never opens under the log of the other."""
        with quietly_kept(work) as kept, quietly_kept(work, seed=1) as stranger:
            for store in (kept, stranger):
                store.write(1)
                store.store.checkpoint()
            twin_path = kept.crash_image()
            with kept.opened(twin_path) as twin:
                theirs = kept.models[-1].copy()
                _write(twin, work, theirs, 3)
                twin.checkpoint()
                kept.write(2)
                stranger.write(3)
                source, end = LocalSource(kept.store), twin.durable
                assert end.txid == kept.last == stranger.last
                with raises(Diverged, "a lease after a twin's position"):
                    source.lease("a check", image=False, after=end)
                grant = source.lease("a check", image=False, after=kept.store.log.base)
                with raises(Diverged, "log read after a twin's position"):
                    list(source.read_log(grant.id, end, end.txid))
                log = Log.create(kept.fresh("log"), kept.store.history, kept.store.log.base, engine=work.engine.name,
                                 options=_LOG, env=REAL)
                fetch(source, grant.id, log, kept.store.published, kept.store.history)
                _write(twin, work, theirs, 4)
                with raises(InvalidInput, "a twin's record at the end of this store's log"):
                    log.writer.append_record(next(twin.log.read(end.txid)))
                log.close()
                source.release(grant.id)
                _refuse_by_history(kept, source, stranger)
            _refuse_states(kept, [twin_path, stranger.path])


def _altered(record: Record, before: Position) -> Record:
    """The same record, said to follow another one."""
    return Record.decode(bytes(len(before.chain)), record.header, record.payload)


def _refuse_pruned(kept: Modelled, source: LocalSource, early: Seeded, other: Log) -> None:
    log = kept.store.log
    assert log.base.txid > 1, f"the log was pruned, and starts after transaction {log.base.txid}"
    held = source.lease("a check", image=False, after=log.base)
    gone = other.end
    for what, call in (
            ("reading pruned log", lambda: list(log.read(0))),
            ("the chain at a pruned transaction", lambda: source.chain_at(gone.txid)),
            ("a lease on pruned log", lambda: source.lease("a check", image=False, after=gone)),
            ("pruned log under a lease on later log", lambda: list(source.read_log(held.id, gone, log.end.txid))),
            ("fetching across a gap", lambda: fetch(source, held.id, other, log.end, kept.store.history))):
        with raises(LogPruned, what):
            call()
    assert other.end == gone, f"after a refused fetch, the log ends at {other.end}, not {gone}"
    source.release(held.id)
    engine = early.engine()
    try:
        with raises(LogPruned, "rolling a state across a gap"):
            roll(engine, log, log.end.txid, durable=True)
        assert engine.position == early.image_position, (
            f"after a refused roll the state is at {engine.position}, not {early.image_position}")
    finally:
        engine.close()


def _write(store: Any, work: Workload, model: Any, number: int) -> None:
    """To another store than the kept one. `model` is that of its content, and is changed with it."""
    with store.transaction() as tx:
        work.run(tx, model, work.numbered(number))


def _refuse_by_history(kept: Modelled, source: LocalSource, stranger: Modelled) -> None:
    info, history, end = source.info(), kept.store.history, kept.store.durable
    compare(info, history, end)
    elsewhere = History(history.store_id, (Branch(b"another branch!!", history.branch.start),))
    for kind, what, theirs, at in (
            (ForeignStore, "another store's history", stranger.store.history, stranger.store.durable),
            (OtherBranch, "a copy on another branch", elsewhere, end),
            (AheadOfSource, "a copy that is ahead", history, Position(end.txid + 1, bytes(16)))):
        with raises(kind, what):
            compare(info, theirs, at)


def _refuse_states(kept: Modelled, others: list[Path]) -> None:
    """States at transactions that this store has too, of other histories, under this store's log."""
    kept.store.close()
    try:
        for other in others:
            mixed = kept.fresh("mixed")
            copy_running(kept.path, mixed)
            state = state_of(mixed)
            REAL.files.remove_tree(state)
            copy_running(state_of(other), state)
            with raises(HoldfastError, "the state of another history under this log"):
                kept.opened(mixed).close()
    finally:
        kept.open()
