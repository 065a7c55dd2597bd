"""Log and states that do not fit: too short, out of order, pruned, of another history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....engine.env import REAL
from ....engine.errors import (
    AheadOfSource,
    Diverged,
    ForeignStore,
    HoldfastError,
    InvalidInput,
    LogPruned,
    OtherBranch,
)
from ....engine.model.positions import Branch, History, Position
from ....engine.model.records import Record
from ....engine.source.interface import compare
from ....engine.source.local import LocalSource
from ....engine.testing.support.contract import Contract, check
from ....engine.testing.support.crash_images import copy_running, state_of
from ....engine.testing.support.modelled import Modelled
from ....engine.testing.support.raising import raises
from ....engine.testing.support.workload import Workload
from ....engine.wal.log import Log
from ...roll import fetch, roll
from ..seeded import LOG, Seeded, fill, quietly_kept


class MismatchChecks(Contract):
    """What does not fit is refused."""

    @check()
    def test_order_is_enforced_and_gaps_are_refused(self, work: Workload) -> None:
        """A log takes records in their order only, without gaps, and of its own history only. Asking for log that is no
        longer there is an error, for a reader, a lease, a copy and a state that needs it."""
        with quietly_kept(work) as kept:
            early = Seeded(kept, LocalSource(kept.store), kept.fresh("early"))
            for number in range(1, 5):
                kept.write(number)
            log, source = kept.store.log, LocalSource(kept.store)
            records = list(log.read(0))
            other = Log.create(kept.fresh("log"), kept.store.history, log.base, engine=work.engine.name, options=LOG,
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
                                 options=LOG, env=REAL)
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
    """Write to another store than the kept one. `model` is that of its content, and is changed with it."""
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
    """Refuse states of other histories, at transactions that this store has too, under this store's log."""
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
