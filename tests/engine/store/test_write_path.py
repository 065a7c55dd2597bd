"""How transactions are written, tried without a store: an engine, a log, and what joins them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from store_kinds import MEMORY, QUIET, STAGING, Kind

from holdfast.engine.contract.engine import Context, StagingEngine
from holdfast.engine.contract.plugin import Plugin
from holdfast.engine.env import REAL
from holdfast.engine.env.owned_lock import Hold, OwnedLock
from holdfast.engine.errors import (
    ConditionNotMet,
    DirectoryMoved,
    DiskFull,
    HoldfastError,
    InvalidInput,
    LimitReached,
    OutcomeUnknown,
    RolledBack,
    StoreClosed,
)
from holdfast.engine.model.positions import Branch, History, origin
from holdfast.engine.model.records import LogRange
from holdfast.engine.store.backpressure import Backpressure
from holdfast.engine.store.checkpoints import Checkpoints
from holdfast.engine.store.commit_queue import CommitTicket
from holdfast.engine.store.group_commit import GroupCommit
from holdfast.engine.store.hooks import Hooks
from holdfast.engine.store.usability import Usability
from holdfast.engine.store.watermarks import Watermarks
from holdfast.engine.store.write_path import WritePath
from holdfast.engine.wal.log import Log

ID = bytes(16)


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt."""


class Refusing(Plugin):
    def committing(self, tx: Any) -> None:
        raise ValueError("not this one")


@contextmanager
def writing(kind: Kind, directory: Path, plugins: tuple[Plugin, ...] = ()) -> Iterator[WritePath[Any]]:
    context, start, hooks = Context(REAL, {}, store_id=ID), origin(ID), Hooks(plugins, REAL.scheduler)
    for part in ("state", "log"):
        (directory / part).mkdir()
    kind.engine.create(directory / "state", start, context)
    engine = kind.engine.open(directory / "state", context)
    log = Log.create(directory / "log", History(ID, (Branch(ID, start),)), start, engine=engine.name, env=REAL)
    group_commit = GroupCommit(log, Watermarks(start, start, len(hooks.logged)), hooks, REAL, relaxed_s=0.1,
                               staging=engine if isinstance(engine, StagingEngine) else None,
                               on_fault=lambda error: None)
    usability = Usability(directory)
    yield WritePath(engine, group_commit, hooks, Backpressure(engine, log, group_commit, QUIET, REAL),
                    Checkpoints(engine, group_commit, hooks, REAL, usability), QUIET, REAL, usability)
    group_commit.close()
    log.close()
    engine.close()


def numbers(kind: Kind, path: WritePath[Any]) -> set[int]:
    with path.engine.view() as view:
        return kind.of(view)


both = pytest.mark.parametrize("kind", [MEMORY, STAGING], ids=["memory", "staging"])


@both
def test_what_is_committed_is_there_and_what_is_not_is_not(kind: Kind, tmp_path: Path) -> None:
    with writing(kind, tmp_path) as path:
        for n, how in enumerate(("synced", "relaxed", "pipelined", None)):
            with path.transaction(how) as tx:  # type: ignore[arg-type]
                kind.write(tx, n)
            assert path.lock.holder is None
        with pytest.raises(ZeroDivisionError), path.transaction("synced") as tx:
            kind.write(tx, 9)
            raise ZeroDivisionError
        with path.transaction("synced") as tx, pytest.raises(InvalidInput, match="already has a transaction open"):
            path.transaction("synced").__enter__()
        path.wait(4, 30)
        assert numbers(kind, path) == {0, 1, 2, 3}


@both
def test_one_block_is_not_begun_within_itself(kind: Kind, tmp_path: Path) -> None:
    """The lock is its own, so it seemed to be free: two transactions were open, and the second to end had no lock."""
    with writing(kind, tmp_path) as path:
        block = path.transaction("synced")
        with block as tx:
            kind.write(tx, 1)
            with pytest.raises(InvalidInput, match="has begun already"), block:
                raise AssertionError("begun twice")
            assert path.lock.held_here()
        with block as tx:  # when it has ended
            kind.write(tx, 2)
        assert numbers(kind, path) == {1, 2}


@both
@pytest.mark.parametrize("lack", [DiskFull, LimitReached, DirectoryMoved])
def test_what_an_engine_lacks_for_a_transaction_rolls_it_back(kind: Kind, lack: type[HoldfastError], tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Since these errors are not `RolledBack` by themselves, a commit ended in one that is none of its four ends."""
    def lacks(*_: Any) -> Any:
        raise lack("it is not there")

    with writing(kind, tmp_path) as path:
        with monkeypatch.context() as patched:
            patched.setattr(type(path.engine), "begin", lacks)
            with pytest.raises(RolledBack) as begun, path.transaction("synced"):
                raise AssertionError("begun")
        with monkeypatch.context() as patched, pytest.raises(RolledBack) as ended, path.transaction("synced") as tx:
            kind.write(tx, 1)
            patched.setattr(type(tx), "payload", lacks)
        assert isinstance(begun.value, lack)
        assert isinstance(ended.value, lack)
        assert path.lock.holder is None


class Listening(Plugin):
    """Acknowledgements wait for whoever asks it, which nobody does here."""

    def logged(self, batch: LogRange) -> None:
        return None


@pytest.mark.parametrize("plugins", [(), (Listening(),)], ids=["alone", "listened to"])
def test_a_ticket_can_be_waited_for_at_any_time(plugins: tuple[Plugin, ...], tmp_path: Path) -> None:
    with writing(STAGING, tmp_path, plugins) as path:
        group_commit, watermarks = path.group_commit, path.group_commit.watermarks

        def append() -> CommitTicket:
            tx = path.engine.begin()
            STAGING.write(tx, 1)
            return group_commit.append(tx.payload(), path.engine.payload_version, None, tx, barrier=False)[1]

        def answer(upto: int) -> None:
            """As the thread that asks listeners would."""
            assert group_commit.wait_until(lambda: watermarks.durable.txid >= upto, 30)
            with group_commit.mutex:
                while plugins and (log := watermarks.next_unanswered()) is not None:
                    watermarks.answered(log.last, [])
            group_commit.advance()

        first, second, third, fourth = (append() for _ in range(4))
        outcome = second.future()
        answer(2)
        assert outcome.result(30) == 2
        first.wait()
        second.wait()
        assert second.future().result(0) == 2
        third.future()
        answer(4)
        third.wait_publishable()
        fourth.wait()
        assert watermarks.acknowledged.txid == 4
        failed = append()
        if plugins:
            group_commit.give_up(5, 5, "was late")
            for ended in (failed.wait, failed.future().result):
                with pytest.raises(ConditionNotMet, match="was late"):
                    ended()
        group_commit.fail(OSError("the disk"))
        with pytest.raises(ConditionNotMet if plugins else OutcomeUnknown):
            failed.wait()


def test_a_plugin_refuses_transactions_and_bulk_loads(tmp_path: Path) -> None:
    with writing(STAGING, tmp_path, (Refusing(),)) as path:
        with pytest.raises(RolledBack, match="not this one"), path.transaction("synced") as tx:
            STAGING.write(tx, 1)
        with pytest.raises(RolledBack, match="not this one"):
            path.bulk({b"1": b""})
        assert path.lock.holder is None
        assert numbers(STAGING, path) == set()


@both
def test_an_interrupted_release_poisons_nothing(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's handler raised as the writer lock was to be released: the engine has the transaction, or it is staged,
    so nothing is unknown, and the next writer gets the lock."""
    release: Callable[[Hold], None] = Hold.release

    def interrupted(hold: Hold) -> None:
        monkeypatch.undo()
        raise Interrupt

    with writing(kind, tmp_path) as path:
        with pytest.raises(Interrupt), path.transaction("synced") as tx:
            kind.write(tx, 1)
            monkeypatch.setattr(Hold, "release", interrupted)
        assert Hold.release is release
        assert path.group_commit.poison is None
        with path.transaction("synced") as tx:
            kind.write(tx, 2)
        assert numbers(kind, path) == {1, 2}


def test_what_has_ended_or_is_read_only_says_so(tmp_path: Path) -> None:
    with writing(MEMORY, tmp_path) as path:
        path.usability.read_only = path.usability.no_writes = True
        with pytest.raises(InvalidInput, match="read-only"):
            path.transaction("synced").__enter__()
        path.usability.ended = "is closed"
        with pytest.raises(StoreClosed, match="is closed"):
            path.transaction("synced").__enter__()
        assert path.lock.holder is None


def test_a_lock_is_released_twice_if_once_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = OwnedLock(REAL)

    def interrupted(hold: Hold) -> None:
        monkeypatch.undo()
        raise Interrupt

    def work() -> None:
        assert lock.held_here()
        monkeypatch.setattr(Hold, "release", interrupted)

    with pytest.raises(Interrupt):
        lock.run(work, lambda: None)
    assert lock.holder is None
    first, second = Hold(lock), Hold(lock)
    assert first.try_take()
    assert not second.take(0.01)
    first.pass_on(second)
    first.release()
    assert lock.holder is second
    second.release()
    assert lock.holder is None
