"""A store that follows another log: append, publish, cut, take over, on engines of all kinds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from store_kinds import KINDS, QUIET, STAGING, Kind, commit

from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.contract.plugin import Condition, Plugin
from holdfast.engine.errors import (
    AheadOfSource,
    Diverged,
    InvalidInput,
    OutcomeUnknown,
    SettingError,
    StorePoisoned,
    Unsupported,
)
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import LogRange, Record
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.replica import Replica
from holdfast.engine.store.store import Store

SQLITE = Kind(SqliteEngine, STAGING.write, STAGING.shown)
ALL = {**KINDS, "sqlite": SQLITE}


@pytest.fixture(params=list(ALL.values()), ids=list(ALL))
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


class Pair:
    """A primary, and a store that was copied from it when both were empty."""

    def __init__(self, kind: Kind, place: Path) -> None:
        self.kind, self.place = kind, place
        kind.open(place / "primary", settings=QUIET).close()
        shutil.copytree(place / "primary", place / "member")
        self.primary = kind.open(place / "primary", settings=QUIET)
        self.open(0)

    def open(self, replica: int | None) -> None:
        self.store: Store[Any, Any] = self.kind.open(self.place / "member", settings=QUIET, replica=replica)

    @property
    def replica(self) -> Replica:
        assert self.store.replica is not None
        return self.store.replica

    def write(self, *numbers: int) -> None:
        for n in numbers:
            commit(self.kind, self.primary, n)

    def new(self) -> list[Record]:
        return list(self.primary.log.read(self.store.durable.txid))

    def shown(self) -> set[int]:
        return self.kind.numbers(self.store)


@pytest.fixture
def pair(tmp_path: Path, kind: Kind) -> Iterator[Pair]:
    made = Pair(kind, tmp_path)
    yield made
    made.store.close()
    made.primary.close()


def test_what_is_appended_is_durable_and_shown_when_published(pair: Pair) -> None:
    pair.write(1, 2)
    pair.primary.write_path.mark()
    pair.write(3)
    assert pair.replica.append(pair.new()) == pair.primary.durable
    assert pair.shown() == set()
    assert pair.store.durable.txid == 4
    assert pair.replica.publish(3).txid == 3
    assert pair.shown() == {1, 2}
    assert pair.store.checkpoint().txid == 2
    assert pair.replica.publish(1).txid == 3
    with pair.store.snapshot() as held:
        assert pair.replica.publish(99).txid == 4
        assert pair.kind.of(held) == {1, 2}
    assert pair.shown() == {1, 2, 3}
    assert list(pair.store.log.read(0)) != []
    assert [r.chain for r in pair.store.log.read(0)] == [r.chain for r in pair.primary.log.read(0)]


def test_an_opening_shows_the_state_or_what_it_is_told(pair: Pair) -> None:
    pair.write(1, 2, 3, 4)
    pair.replica.append(pair.new())
    pair.replica.publish(2)
    pair.store.close()
    pair.open(0)
    assert pair.shown() == {1, 2}  # closing has checkpointed that
    assert pair.store.durable.txid == 4
    pair.store.close()
    pair.open(3)
    assert pair.shown() == {1, 2, 3}
    assert pair.replica.publish(4).txid == 4  # by a cursor: nothing is in memory
    assert pair.shown() == {1, 2, 3, 4}


def test_an_opening_without_replica_leaves_the_cluster(pair: Pair) -> None:
    pair.write(1, 2)
    pair.replica.append(pair.new())
    pair.store.close()
    pair.open(None)
    assert pair.store.replica is None
    assert pair.shown() == {1, 2}
    commit(pair.kind, pair.store, 3)


def test_records_that_do_not_follow_are_refused(pair: Pair) -> None:
    pair.write(1, 2, 3)
    first, second, third = pair.new()
    with pytest.raises(InvalidInput, match="cannot follow"):
        pair.replica.append([first, third])
    assert pair.store.durable == first.position
    other = Record.make(b"?" * 16, 2, 0, second.time_us, 1, second.payload)
    with pytest.raises(InvalidInput, match="history"):
        pair.replica.append([other])
    pair.replica.start_epoch(5)
    late = Record.make(pair.store.durable.chain, 3, 4, third.time_us, 1, third.payload)
    with pytest.raises(InvalidInput, match="epoch 4"):
        pair.replica.append([late])
    with pytest.raises(InvalidInput, match="epoch 5"):
        pair.replica.start_epoch(5)
    assert pair.store.durable.txid == 2


def test_transactions_are_refused_until_the_store_accepts(pair: Pair) -> None:
    with pytest.raises(Unsupported, match="replica"):
        commit(pair.kind, pair.store, 1)
    with pytest.raises(InvalidInput, match="not a primary"):
        pair.store.wait(pair.replica.mark())
    pair.replica.refuse(lambda: OSError("the primary is elsewhere"))  # type: ignore[arg-type,return-value]
    with pytest.raises(OSError, match="elsewhere"):
        commit(pair.kind, pair.store, 1)
    pair.write(1)
    pair.replica.append(pair.new())
    record = pair.replica.start_epoch(7)
    assert (record.epoch, record.is_kit, pair.replica.last_epoch) == (7, True, 7)
    assert record.time_us > next(iter(pair.store.log.read(0))).time_us
    with pytest.raises(InvalidInput, match="published"):
        pair.replica.accept()
    pair.replica.publish(2)
    pair.replica.accept()
    commit(pair.kind, pair.store, 2)
    assert pair.replica.mark() == 4
    commit(pair.kind, pair.store, 3)
    assert pair.shown() == {1, 2, 3}
    assert {r.epoch for r in pair.store.log.read(1)} == {7}
    for refused in (lambda: pair.replica.append([]), lambda: pair.replica.start_epoch(8),
                    lambda: pair.replica.cut(pair.store.published, lambda record: None)):
        with pytest.raises(InvalidInput, match="is a primary"):
            refused()
    pair.store.close()
    pair.open(0)
    assert pair.replica.last_epoch == 7
    with pytest.raises(Unsupported):
        commit(pair.kind, pair.store, 4)


def test_a_transaction_under_way_ends_when_new_ones_are_refused(pair: Pair) -> None:
    pair.replica.accept()
    with pair.store.transaction() as tx:
        pair.replica.refuse(lambda: InvalidInput("stepping down"))
        pair.kind.write(tx, 1)
    assert pair.shown() == {1}
    with pytest.raises(InvalidInput, match="stepping down"):
        commit(pair.kind, pair.store, 2)


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_cut_removes_what_is_above_and_the_log_goes_on(pair: Pair, after: int) -> None:
    pair.write(1, 2, 3)
    pair.replica.append(pair.new())
    pair.replica.start_epoch(2)
    pair.replica.start_epoch(3)
    pair.replica.publish(min(after, 2))
    before = pair.shown()
    place = Position(after, pair.store.log.chain_at(after))
    aside: list[int] = []
    with pair.store.snapshot() as held:
        assert pair.replica.cut(place, lambda record: aside.append(record.txid)) == 5 - after
        assert pair.kind.of(held) == before
    assert aside == list(range(after + 1, 6))
    assert pair.store.durable == place
    assert pair.shown() == before
    if after < 3:
        assert pair.replica.last_epoch == 0
        pair.write(4)
        pair.replica.append(pair.new())
        pair.replica.publish(4)
        assert pair.shown() == {1, 2, 3, 4}
    pair.store.log.verify()
    pair.store.close()
    pair.open(0)
    pair.store.log.verify()
    assert not (pair.store.log.directory / "CUT").exists()
    if after < 3:
        assert pair.store.durable == pair.primary.durable


def test_a_cut_is_refused_below_what_is_published_and_in_another_history(pair: Pair) -> None:
    pair.write(1, 2)
    pair.replica.append(pair.new())
    pair.replica.publish(2)
    with pytest.raises(InvalidInput, match="published up to 2"):
        pair.replica.cut(Position(1, pair.store.log.chain_at(1)), lambda record: None)
    with pytest.raises(Diverged):
        pair.replica.cut(Position(2, b"?" * 16), lambda record: None)
    with pytest.raises(AheadOfSource):
        pair.replica.cut(Position(3, b"?" * 16), lambda record: None)


def test_a_cut_whose_records_cannot_be_set_aside_removes_nothing(pair: Pair) -> None:
    pair.write(1, 2)
    pair.replica.append(pair.new())

    def fail(record: Record) -> None:
        raise OSError("no room to set it aside")

    with pytest.raises(OSError, match="no room"):
        pair.replica.cut(Position(0, pair.store.log.chain_at(0)), fail)
    pair.replica.publish(2)
    assert pair.shown() == {1, 2}


def test_a_follower_publishes_what_memory_does_not_hold(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.engine.store.replica.KEPT_BYTES", 10)
    pair.write(*range(1, 40))
    pair.replica.append(pair.new())
    for upto in (3, 20, 39):
        assert pair.replica.publish(upto).txid == upto
    assert pair.shown() == set(range(1, 40))


def test_complete_until_is_the_time_of_the_last_published_record(pair: Pair) -> None:
    pair.write(1, 2)
    records = pair.new()
    pair.replica.append(records)
    pair.replica.publish(1)
    assert pair.store.complete_until_us() == records[0].time_us
    pair.replica.publish(2)
    assert pair.store.complete_until_us() == records[1].time_us
    pair.replica.accept()
    assert pair.store.complete_until_us() == records[1].time_us
    pair.store.wait(pair.replica.mark())
    assert pair.store.complete_until_us() > records[1].time_us


def test_a_lease_on_log_may_begin_above_what_is_published(pair: Pair) -> None:
    pair.write(1, 2)
    pair.replica.append(pair.new())
    source = LocalSource(pair.store)
    grant = source.lease("copy", image=False, after=pair.store.durable)
    assert source.info().published.txid == 0
    with pytest.raises(AheadOfSource):
        list(source.read_log(source.lease("copy", image=False, after=pair.store.published).id,
                             pair.store.published, 2))
    pair.replica.publish(2)
    assert list(source.read_log(grant.id, pair.store.durable, 2)) == []


def test_a_record_that_the_engine_does_not_read_stops_publication_before_it(pair: Pair) -> None:
    pair.write(1)
    pair.replica.append(pair.new())
    strange = Record.make(pair.store.durable.chain, 2, 0, pair.new()[-1].time_us + 1 if pair.new() else
                          pair.store.log.complete_us + 1, 99, b"?")
    pair.replica.append([strange])
    with pytest.raises(Exception, match="payload version 99"):
        pair.replica.publish(2)
    assert pair.store.published.txid == 1
    assert not pair.store.poisoned
    assert pair.replica.cut(pair.store.published, lambda record: None) == 1  # else it could not be closed in order


class Listening(Plugin):
    """Gates publication by conditions that are never met, and notes what is published."""

    def __init__(self) -> None:
        self.published_txids: list[int] = []

    def logged(self, batch: LogRange) -> Condition | None:
        return Condition(met=Future(), timeout=60.0, gates_publication=True, name="nobody")

    def published(self, records: Sequence[Record]) -> None:
        self.published_txids += [record.txid for record in records]


def test_open_commits_end_unknown_when_a_member_is_closed(tmp_path: Path) -> None:
    pair, plugin = Pair(STAGING, tmp_path), Listening()
    pair.write(1)
    records = pair.new()
    pair.store.close()
    pair.store = STAGING.open(tmp_path / "member", settings=QUIET, replica=0, plugins=[plugin])
    pair.replica.append(records)
    pair.replica.publish(1)
    assert plugin.published_txids == [1]
    pair.replica.accept()
    with pair.store.transaction("pipelined") as tx:
        STAGING.write(tx, 2)
    assert pair.shown() == {1}
    pair.store.close()
    with pytest.raises(OutcomeUnknown):
        tx.outcome.result(timeout=10)
    pair.open(0)
    assert pair.shown() == {1}
    assert pair.store.durable.txid == 2
    assert pair.replica.cut(pair.store.published, lambda record: None) == 1
    pair.store.close()
    pair.primary.close()


def test_a_bulk_load_is_published_and_cut(tmp_path: Path) -> None:
    pair = Pair(STAGING, tmp_path)
    pair.write(1)
    pair.primary.bulk({b"5": b"x"})
    pair.write(2)
    for round_ in range(2):
        for record in pair.new():
            if record.attachment is not None:
                out = pair.store.log.import_attachment(record.attachment)
                out.write(pair.primary.log.attachment_path(record.attachment.name).read_bytes())
                out.finish()
        pair.replica.append(pair.new())
        if not round_:
            assert pair.replica.cut(pair.store.published, lambda record: None) == 3
            assert list((pair.store.log.directory / "attachments").iterdir()) == []
    pair.replica.publish(3)
    assert pair.shown() == pair.kind.numbers(pair.primary)
    pair.store.close()
    pair.primary.close()


def test_a_member_that_cannot_write_is_poisoned(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.write(1)
    monkeypatch.setattr(pair.store.log.writer, "write", _fails)
    with pytest.raises(StorePoisoned):
        pair.replica.append(pair.new())
    with pytest.raises(StorePoisoned):
        pair.replica.publish(1)


def _fails(batch: object) -> None:
    raise OSError(5, "the disk has failed")


def test_replica_must_be_a_transaction(tmp_path: Path) -> None:
    with pytest.raises(SettingError):
        STAGING.open(tmp_path / "s", replica=-1)
    with pytest.raises(SettingError):
        STAGING.open(tmp_path / "s", replica=1, read_only=True)


NEW, OTHER = b"n" * 16, b"o" * 16


def test_a_follower_begins_a_branch_where_the_followed_log_did(pair: Pair, tmp_path: Path) -> None:
    pair.write(1, 2, 3)
    pair.replica.append(pair.new())
    pair.store.close()
    shutil.copytree(tmp_path / "member", tmp_path / "third")
    pair.open(3)
    third = pair.kind.open(tmp_path / "third", settings=QUIET, replica=0)
    assert third.replica is not None
    third.replica.cut(Position(2, third.log.chain_at(2)), lambda record: None)
    start = pair.store.durable
    pair.replica.start_epoch(5, NEW)
    assert [branch.id for branch in pair.store.history.branches[1:]] == [NEW]
    pair.replica.publish(4)
    pair.replica.accept()
    commit(pair.kind, pair.store, 9)
    third.replica.adopt(pair.store.history)
    assert third.history == pair.primary.history  # not before its log comes there
    third.replica.append(list(pair.store.log.read(2)))
    assert third.history == pair.store.history
    assert third.history.branch.start == start
    assert third.durable == pair.store.durable
    third.close()
    third = pair.kind.open(tmp_path / "third", settings=QUIET, replica=5)
    assert third.history == pair.store.history
    assert pair.kind.numbers(third) == {1, 2, 3, 9}
    third.log.verify()
    third.close()


def test_a_branch_without_a_record_gives_way_to_the_followed_log(pair: Pair) -> None:
    pair.write(1, 2)
    pair.replica.append(pair.new())
    pair.replica._begin_branch(OTHER)  # as by a promotion that was killed here
    assert pair.store.history.branch.id == OTHER
    pair.replica.adopt(pair.primary.history)
    assert pair.store.history == pair.primary.history
    pair.write(3)
    pair.replica.append(pair.new())
    pair.store.close()
    pair.open(3)
    assert pair.store.history == pair.primary.history
    assert pair.shown() == {1, 2, 3}


def test_a_log_does_not_follow_one_that_left_its_branch_earlier(pair: Pair) -> None:
    pair.write(1, 2, 3)
    pair.replica.append(pair.new()[:2])
    history = pair.store.history
    early = Position(1, pair.store.log.chain_at(1))
    with pytest.raises(Diverged, match="part before transaction 2"):
        pair.replica.adopt(history.extended(NEW, early))
    with pytest.raises(Diverged, match="another store"):
        pair.replica.adopt(history._replace(store_id=OTHER))
    pair.replica.adopt(history.extended(NEW, pair.primary.durable))  # further on, and never reached
    pair.replica.start_epoch(7, OTHER)
    assert pair.store.history.branch.id == OTHER
    with pytest.raises(Diverged):
        pair.replica.adopt(history)
    pair.replica.start_epoch(8, OTHER)
    assert len(pair.store.history.branches) == len(history.branches) + 1
