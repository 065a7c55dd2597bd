"""How much log waits for an archive, and what happens at that bound: it is the operator who chooses, and nothing is
given up without a word. And what an operator sees of an archive."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from archive_rig import archived, cut_off, put, until
from staging_memory import StagingMemory
from store_kinds import KINDS

from holdfast.backup import ArchiveAckPlugin, ArchivePlugin, Repository, drop_slot, info, slots
from holdfast.backup.repository import archiver as archivers
from holdfast.engine import Store
from holdfast.engine.errors import ConditionNotMet, RestorePointOutOfRange, RolledBack, SettingError
from holdfast.engine.source.http.limits import Counters
from holdfast.engine.source.http.status import metrics
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.settings import Settings

ENGINES = {"staging": StagingMemory, "barriers": KINDS["memory"].engine}


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    Repository.init(tmp_path / "repo").close()
    return tmp_path / "repo"


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What makes the storage unavailable while it has something in it."""
    monkeypatch.setattr("holdfast.backup.repository.archiving._PAUSE_S", 0.01)
    monkeypatch.setattr("holdfast.backup.repository.archiving._LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr("holdfast.backup.repository.storage.putting.PAUSE_S", 0.001)
    return cut_off(monkeypatch)


def settings(**how: Any) -> Settings:
    return Settings(segment_bytes=128 << 10, heartbeat_s=0, keep_logs="1 transactions", **how)


def opened(place: Path, plugin: ArchivePlugin, engine: Any = StagingMemory, **how: Any) -> Store[Any, Any]:
    return Store.open(place, engine, create=True, plugins=[plugin], settings=settings(**how))


def facts(store: Store[Any, Any]) -> dict[str, Any]:
    return {one["name"]: one["value"] for one in store.status()["plugins"]}


def bounds(repo: Path) -> list[tuple[int, int]]:
    """The transactions to which the repository restores, in stretches."""
    with Repository.open(repo) as repository:
        return [(one.first, one.last) for branch in repository.info().branches for one in branch.restores_to]


def content(place: Path) -> dict[bytes, bytes]:
    with Store.open(place, StagingMemory) as store, store.snapshot() as view:
        return dict(view.items())


# --- hold ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_at_the_bound_transactions_wait_until_the_repository_is_back(repo: Path, tmp_path: Path, cut: list[bool],
                                                                     engine: Any) -> None:
    plugin = ArchivePlugin(str(repo), interval=0.01, keep="3 transactions", overrun="hold")
    with opened(tmp_path / "s", plugin, engine, wait_s=60) as store, ThreadPoolExecutor(2) as pool:
        put(store)
        until(lambda: facts(store)["archive_txid"] == 1)
        cut.append(True)
        put(store, 4)  # the bound is passed by the last one
        waiting = [pool.submit(put, store) for _ in range(2)]
        until(lambda: facts(store)["archive_held"] == 1 and store.status()["delayed_commits"] == 2)
        assert not any(one.done() for one in waiting)
        with store.snapshot() as view:
            assert len(dict(view.items())) == 5
        store.checkpoint()
        assert store.durable.txid == 5
        cut.clear()
        for one in waiting:
            one.result(30)
        until(lambda: archived(repo) == 7)
        assert facts(store)["archive_held"] == 0
    with Repository.open(repo) as repository:
        assert len(repository._catalog.refresh().branches[store.history.branch.id.hex()].runs) == 1  # without a gap


def test_at_the_bound_a_transaction_ends_in_an_error_that_says_what_to_do(repo: Path, tmp_path: Path, cut: list[bool]
                                                                          ) -> None:
    plugin = ArchivePlugin(str(repo), interval=0.01, keep="1 KiB", overrun="hold")
    with opened(tmp_path / "s", plugin, wait_s=0.3) as store:
        put(store)
        until(lambda: facts(store)["archive_txid"] == 1)
        cut.append(True)
        put(store, size=2000)
        until(lambda: facts(store)["archive_failing"] == 1)
        with pytest.raises(RolledBack, match=r"after 0\.3 s, the archive in file://.*/repo ends at transaction 1: "
                                             r"[\d,]+ bytes of log .* 1,024 may wait: the network is down") as caught:
            put(store)
        [slot] = slots(store)
        assert f"holdfast slots drop URI {slot.id}" in str(caught.value.hint)
        assert store.durable.txid == 2


def test_closing_does_not_wait_for_what_is_held(repo: Path, tmp_path: Path, cut: list[bool]) -> None:
    plugin = ArchivePlugin(str(repo), interval=0.01, keep="1 transactions", overrun="hold")
    store = opened(tmp_path / "s", plugin, wait_s=600)
    with ThreadPoolExecutor(1) as pool:
        put(store)
        until(lambda: facts(store)["archive_txid"] == 1)
        cut.append(True)
        put(store, 2)
        waiting = pool.submit(put, store)
        until(lambda: store.status()["delayed_commits"] == 1)
        store.close()
        assert waiting.exception(30) is None or "closed" in str(waiting.exception())


def test_a_bound_smaller_than_a_transaction_lets_one_through_at_a_time(repo: Path, tmp_path: Path) -> None:
    plugin = ArchivePlugin(str(repo), interval=600, keep="10 B", overrun="hold")
    with opened(tmp_path / "s", plugin, wait_s=60) as store:
        for n in range(5):
            put(store, size=3000)
            assert (archived(repo) or 0) >= n  # it waited until all before was archived, and that began at once


def test_after_a_crash_at_the_bound_transactions_are_held_without_the_repository(repo: Path, tmp_path: Path,
                                                                                 cut: list[bool]) -> None:
    """Where the archive ended is known from the slot. The log is kept meanwhile, whatever the settings say."""
    plugin = ArchivePlugin(str(repo), interval=0.01, keep="10 MiB", overrun="hold")
    with opened(tmp_path / "s", plugin) as store:
        put(store)
        until(lambda: facts(store)["archive_txid"] == 1 and slots(store)[0].position.txid == 1)
        cut.append(True)
        put(store, 40, size=6000)
        store.checkpoint()
        shutil.copytree(tmp_path / "s", tmp_path / "crashed")
    again = ArchivePlugin(str(repo), interval=0.01, keep="200 KiB", overrun="hold")
    with opened(tmp_path / "crashed", again, wait_s=0.3, slot_bytes=1000, slot_days=1e-9) as store:
        assert (facts(store)["archive_txid"], facts(store)["archive_lag_transactions"]) == (1, 40)
        with pytest.raises(RolledBack, match="ends at transaction 1"):
            put(store)
        store.prune()
        assert store.log.base.txid <= 1
        cut.clear()
        until(lambda: archived(repo) == 41)
        put(store)
        until(lambda: archived(repo) == 42)
        until(lambda: slots(store)[0].position.txid == 42)
    with Repository.open(repo) as repository:
        assert len(repository._catalog.refresh().branches[store.history.branch.id.hex()].runs) == 1


def test_an_operator_gives_up_what_is_held_by_dropping_the_slot(repo: Path, tmp_path: Path, cut: list[bool],
                                                                caplog: pytest.LogCaptureFixture) -> None:
    plugin = ArchivePlugin(str(repo), interval=0.01, keep="3 transactions", overrun="hold")
    with opened(tmp_path / "s", plugin, wait_s=60) as store, ThreadPoolExecutor(1) as pool:
        put(store)
        with Repository.open(repo) as repository:
            repository.backup(store)
        until(lambda: facts(store)["archive_txid"] == 1 and slots(store)[0].position.txid == 1)
        cut.append(True)
        put(store, 4)
        waiting = pool.submit(put, store)
        until(lambda: store.status()["delayed_commits"] == 1)
        [slot] = [slot for slot in slots(store) if slot.name == f"archive in file://{repo}"]
        drop_slot(store, slot.id)
        waiting.result(30)
        until(lambda: facts(store)["archive_given_up_total"] == 1)
        assert "after transaction 1 is given up: its slot was dropped" in caplog.text
        put(store, 10)  # nothing is held any more
        cut.clear()
        until(lambda: (archived(repo) or 0) >= 16)
        assert facts(store)["archive_given_up_txid"] == 1
        assert_gap(repo, store, tmp_path, 1)


def test_a_slot_is_dropped_by_hand_even_if_the_archiver_has_died(repo: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """By an error in its own code, say. Nothing is given up by that alone."""
    plugin = ArchivePlugin(str(repo), interval=0.01, keep="2 transactions", overrun="hold")
    with opened(tmp_path / "s", plugin, wait_s=0.2) as store:
        put(store)
        until(lambda: facts(store)["archive_txid"] == 1 and slots(store)[0].position.txid == 1)

        def dies(*_: object) -> None:
            raise ZeroDivisionError("a mistake")

        monkeypatch.setattr(archivers.Archiver, "step", dies)
        until(lambda: facts(store)["archive_error"] == "a mistake")
        put(store, 3)
        with pytest.raises(RolledBack, match="a mistake"):
            put(store)
        drop_slot(store, slots(store)[0].id)
        put(store, 3)


# --- drop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["3 transactions", "60 KiB", "0.0001 hours"])
def test_at_the_bound_the_archive_is_given_up_by_name_and_the_next_image_heals_it(
        repo: Path, tmp_path: Path, cut: list[bool], caplog: pytest.LogCaptureFixture, keep: str) -> None:
    plugin = ArchivePlugin(str(repo), interval=0.01, keep=keep, overrun="drop")
    with opened(tmp_path / "s", plugin, wait_s=0.3) as store:
        put(store)
        with Repository.open(repo) as repository:
            repository.backup(store)
        until(lambda: facts(store)["archive_txid"] == 1)
        cut.append(True)
        put(store, 60, size=8000)
        until(lambda: facts(store)["archive_given_up_total"] == 1)
        assert "is given up" in caplog.text
        assert "The archive will have a gap; the points after it need a new image" in caplog.text
        assert (facts(store)["archive_given_up_txid"], facts(store)["archive_txid"]) == (1, None)
        assert slots(store) == []
        put(store, 60, size=8000)  # transactions go on, and so does pruning
        store.checkpoint()
        store.prune()
        assert store.log.base.txid > 1
        cut.clear()
        until(lambda: facts(store)["archive_txid"] == store.durable.txid)
        assert facts(store)["archive_failing"] == 0
        assert_gap(repo, store, tmp_path, 1)


def test_what_was_given_up_is_not_archived_later_even_if_the_log_is_there(repo: Path, tmp_path: Path, cut: list[bool]
                                                                          ) -> None:
    """Else an archiver that is too slow would hold the log for ever, and give it up again and again."""
    plugin = ArchivePlugin(str(repo), interval=0.01, keep="3 transactions")
    with opened(tmp_path / "s", plugin) as store:
        put(store)
        with Repository.open(repo) as repository:
            repository.backup(store)
        until(lambda: facts(store)["archive_txid"] == 1)
        cut.append(True)
        put(store, 9)
        until(lambda: facts(store)["archive_given_up_total"] == 1)
        assert store.log.base.txid <= 1
        cut.clear()
        until(lambda: archived(repo) == 10)
        put(store)
        until(lambda: archived(repo) == 11)
        assert facts(store)["archive_given_up_total"] == 1
        assert_gap(repo, store, tmp_path, 1)


def test_an_archiver_that_is_too_slow_gives_up_while_it_archives(repo: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "s", ArchivePlugin(str(repo), interval=600)) as store:
        put(store)
        with Repository.open(repo) as repository:
            repository.backup(store)
    with Store.open(tmp_path / "s", StagingMemory, settings=settings()) as store:
        put(store, 9)
    monkeypatch.setitem(archivers.Archiver.__init__.__kwdefaults__ or {}, "piece_bytes", 1)  # one for each transaction
    with opened(tmp_path / "s", ArchivePlugin(str(repo), interval=0.01, keep="5 transactions")) as store:
        until(lambda: facts(store)["archive_given_up_total"] == 1)
        assert facts(store)["archive_given_up_txid"] < 10
        until(lambda: facts(store)["archive_txid"] == 10)
        assert_gap(repo, store, tmp_path, facts(store)["archive_given_up_txid"])


def test_a_store_that_was_closed_for_long_gives_up_nothing(repo: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is older than the bound, and is archived in a moment, piece by piece."""
    monkeypatch.setitem(archivers.Archiver.__init__.__kwdefaults__ or {}, "piece_bytes", 1)
    with opened(tmp_path / "s", ArchivePlugin(str(repo), interval=0.01)) as store:
        put(store)
    with Store.open(tmp_path / "s", StagingMemory, settings=settings()) as store:
        put(store, 3)
    for overrun in ("drop", "hold"):
        with opened(tmp_path / "s", ArchivePlugin(str(repo), interval=0.01, keep="0.0000001 hours",
                                                  overrun=overrun)) as store:
            until(lambda: archived(repo) == store.durable.txid)
            assert facts(store)["archive_given_up_total"] == 0
            put(store)


def assert_gap(repo: Path, store: Store[Any, Any], tmp_path: Path, ends: int) -> None:
    """The archive has a gap after `ends`, which the repository names, and with another image the rest restores."""
    before = store.durable.txid
    with Repository.open(repo) as repository:
        assert [last for _, last in bounds(repo)] == [ends]
        with pytest.raises(RestorePointOutOfRange):
            repository.plan(to_txid=before)
        store.checkpoint()  # so that the image does not reach back into the gap
        repository.backup(store)
        put(store, 2)
        until(lambda: archived(repo) == before + 2)
        assert [last for _, last in bounds(repo)] == [ends, before + 2]
        with pytest.raises(RestorePointOutOfRange):
            repository.plan(to_txid=ends + 1)
        for number, txid in enumerate((ends, before + 2)):
            repository.restore(tmp_path / f"restored-{number}", to_txid=txid, engine=StagingMemory)
            assert len(content(tmp_path / f"restored-{number}")) == txid


# --- what is held by commits that wait ----------------------------------------------------------------------------


@contextmanager
def acknowledged(repo: Path, place: Path, engine: Any, **how: Any) -> Iterator[Store[Any, Any]]:
    with opened(place, ArchiveAckPlugin(str(repo), interval=600, **how), engine) as store:
        yield store


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_readers_see_what_is_archived_if_publication_waits_for_it(repo: Path, tmp_path: Path, cut: list[bool],
                                                                  engine: Any) -> None:
    with (acknowledged(repo, tmp_path / "s", engine, gates_publication=True) as store,
          ThreadPoolExecutor(1) as pool):
        for n in range(1, 4):
            put(store)
            assert archived(repo) == n
        cut.append(True)
        waiting = pool.submit(put, store)
        until(lambda: store.durable.txid == 4)
        with store.snapshot() as view:
            assert len(dict(view.items())) == 3
        assert not waiting.done()
        cut.clear()
        waiting.result(30)
        with store.snapshot() as view:
            assert len(dict(view.items())) == 4


def test_a_commit_that_is_late_is_shown_once_it_is_archived(repo: Path, tmp_path: Path, cut: list[bool]) -> None:
    with acknowledged(repo, tmp_path / "s", StagingMemory, gates_publication=True, ack_timeout=0.1) as store:
        cut.append(True)
        with pytest.raises(ConditionNotMet, match="archived was not met"):
            put(store)
        assert store.published.txid == 0
        cut.clear()
        until(lambda: store.published.txid == 1)
        assert archived(repo) == 1


def test_what_was_durable_and_not_shown_is_archived_after_a_crash(repo: Path, tmp_path: Path, cut: list[bool]) -> None:
    """The archive has what a crash left, which the store shows after it. Nothing in the archive is ever cut off."""
    with acknowledged(repo, tmp_path / "s", StagingMemory, gates_publication=True, ack_timeout=0.1) as store:
        put(store)
        cut.append(True)
        with pytest.raises(ConditionNotMet):
            put(store)
        shutil.copytree(tmp_path / "s", tmp_path / "crashed")
    cut.clear()
    with acknowledged(repo, tmp_path / "crashed", StagingMemory, gates_publication=True) as store:
        assert store.published.txid == 2
        put(store)
        assert archived(repo) == 3


def test_what_publication_waits_for_in_vain_lets_nothing_more_begin(repo: Path, tmp_path: Path) -> None:
    plugin = ArchiveAckPlugin(str(repo), interval=600, gates_publication=True)
    with opened(tmp_path / "s", plugin, wait_s=0.2) as store:
        put(store)
        with Repository.open(repo) as repository:
            repository.archiver(LocalSource(store)).close()
        with pytest.raises(ConditionNotMet):
            put(store)
        with pytest.raises(RolledBack, match=r"archiving has ended, and publication waits for it: .* is archived by "
                                             r"writer 2"):
            put(store)
        assert (store.published.txid, store.durable.txid) == (1, 2)


def test_publication_in_a_member_does_not_wait_for_the_archive(repo: Path, tmp_path: Path) -> None:
    """It would wait for ever, since what is published is archived there."""
    with opened(tmp_path / "s", ArchivePlugin(str(repo))) as store:
        put(store)
    with pytest.raises(SettingError, match="publication cannot wait"):
        Store.open(tmp_path / "s", StagingMemory, replica=1,
                   plugins=[ArchiveAckPlugin(str(repo), gates_publication=True)])


# --- what is shown ------------------------------------------------------------------------------------------------


def test_what_an_operator_sees_of_an_archive(repo: Path, tmp_path: Path, cut: list[bool]) -> None:
    with opened(tmp_path / "s", ArchivePlugin(str(repo), interval=0.01)) as store:
        source = LocalSource(store)

        def figures() -> dict[str, float]:
            lines = (line for line in metrics(source, store, Counters()).splitlines() if "archive_" in line)
            return {line.split("{")[0].removeprefix("holdfast_archive_"): float(line.rsplit(" ", 1)[1])
                    for line in lines if not line.startswith("#")}

        put(store)
        with Repository.open(repo) as repository:
            repository.backup(store)
            repository.verify()
        put(store)
        until(lambda: figures()["txid"] == 2)
        now_s = store.env.clock.now_us() / 1e6
        assert f'holdfast_archive_txid{{of="file://{repo}"}} 2' in metrics(source, store, Counters())
        seen = figures()
        assert (seen["lag_transactions"], seen["lag_bytes"], seen["lag_seconds"]) == (0, 0, 0)
        assert (seen["writer"], seen["failing"], seen["held"], seen["given_up_total"]) == (1, 0, 0, 0)
        assert now_s - 60 < seen["success_timestamp_seconds"] <= now_s
        assert facts(store)["archive_branch"] == store.history.branch.id.hex()
        assert facts(store)["archive_overrun"] == "drop"
        assert facts(store)["archive_error"] is None
        cut.append(True)
        put(store, size=5000)
        until(lambda: figures()["failing"] == 1)
        seen = figures()
        assert seen["lag_transactions"] == 1
        assert seen["lag_bytes"] > 5000
        assert 0 <= seen["lag_seconds"] < 60
        assert facts(store)["archive_error"].startswith("the network is down")
        cut.clear()
        until(lambda: figures()["failing"] == 0 and figures()["txid"] == 3)
    with opened(tmp_path / "s", ArchivePlugin(str(repo), interval=0.01)) as store:
        assert facts(store)["archive_writer"] > 1
        assert now_s - 60 < facts(store)["archive_proof_timestamp_seconds"]


def test_the_last_success_is_when_something_was_put(repo: Path, tmp_path: Path, cut: list[bool]) -> None:
    """An idle store asks nothing of the repository, so that it still answers is not known."""
    with opened(tmp_path / "s", ArchivePlugin(str(repo), interval=0.001)) as store:
        put(store)
        until(lambda: facts(store)["archive_txid"] == 1)
        last = facts(store)["archive_success_timestamp_seconds"]
        cut.append(True)
        until_steps(store)
        assert facts(store)["archive_success_timestamp_seconds"] == last


def until_steps(store: Store[Any, Any]) -> None:
    store.env.clock.sleep(0.05)


def test_info_shows_what_is_kept_for_the_archive(repo: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "s", ArchivePlugin(str(repo), interval=0.01)) as store:
        put(store, 2)
        until(lambda: slots(store)[0].position.txid == 2)
        for open_or_closed in (True, False):
            told = info(tmp_path / "s")
            [slot] = told.to_dict()["slots"]
            assert (slot["name"], slot["txid"], slot["held_bytes"]) == (f"archive in file://{repo}", 2, 0)
            assert f"slot     archive in file://{repo}: has up to transaction 2, at 20" in str(told)
            if open_or_closed:
                store.close()


@pytest.mark.parametrize(("how", "said"), [
    ({"keep": "much"}, "keep: 'much' is not understood"), ({"overrun": "wait"}, "overrun must be 'hold' or 'drop'"),
    ({"idle": 0}, "idle must be a number above 0")])
def test_settings_that_make_no_sense_are_refused(repo: Path, how: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        ArchivePlugin(str(repo), **how)


def test_an_idle_store_says_how_far_it_is_complete_as_often_as_is_asked_for(repo: Path, tmp_path: Path) -> None:
    asked: list[int] = []
    for idle in (0.05, 600.0):
        place = tmp_path / f"s{idle}"
        Repository.init(tmp_path / f"repo{idle}").close()
        with Store.open(place, StagingMemory, create=True, settings=Settings(heartbeat_s=0.02),
                        plugins=[ArchivePlugin(str(tmp_path / f"repo{idle}"), interval=0.01, idle=idle)]) as store:
            put(store)
            store.env.clock.sleep(0.6)
        asked.append(len(list((tmp_path / f"repo{idle}").rglob("log/*/*/*"))))
    assert asked[0] > 4
    assert asked[1] <= 3
