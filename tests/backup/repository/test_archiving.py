"""The archiver in a store's own process, and the commits that wait for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from archive_rig import archived, cut_off, put, until

from holdfast.backup import ArchiveAckPlugin, ArchivePlugin, Repository
from holdfast.backup.connection import Connection
from holdfast.backup.repository.archiving import archive_source
from holdfast.backup.repository.errors import Fenced
from holdfast.engine import MemoryEngine, Store
from holdfast.engine.env import REAL
from holdfast.engine.errors import ConditionNotMet, ForeignStore, SettingError
from holdfast.engine.source.local import LocalSource


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    Repository.init(tmp_path / "repo").close()
    return tmp_path / "repo"


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What makes the storage unavailable while it has something in it."""
    monkeypatch.setattr("holdfast.backup.repository.archiving._PAUSE_S", 0.01)
    return cut_off(monkeypatch)


def test_what_is_committed_is_archived_and_closing_archives_the_rest(repo: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", MemoryEngine, create=True, plugins=[ArchivePlugin(str(repo), interval=0.01)]) as s:
        put(s, 3)
        until(lambda: archived(repo) == 3)
    with Store.open(tmp_path / "s", MemoryEngine, plugins=[ArchivePlugin(str(repo), interval=60)]) as s:
        put(s, 3)
    assert archived(repo) == 6


def test_a_commit_returns_once_it_is_archived(repo: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", MemoryEngine, create=True, plugins=[ArchiveAckPlugin(str(repo), interval=60)]) as s:
        for n in range(1, 4):
            put(s)
            assert archived(repo) == n


def test_an_outage_is_waited_for_and_gone_on_after(repo: Path, tmp_path: Path, cut: list[bool]) -> None:
    plugin = ArchiveAckPlugin(str(repo), interval=60, ack_timeout=0.1)
    with Store.open(tmp_path / "s", MemoryEngine, create=True, plugins=[plugin]) as s:
        put(s)
        cut.append(True)
        with pytest.raises(ConditionNotMet, match="archived"):
            put(s)
        assert s.published.txid == 2
        cut.clear()
        until(lambda: archived(repo) == 2)
        put(s)
        assert archived(repo) == 3


def test_a_store_opens_without_its_repository_and_is_archived_later(repo: Path, tmp_path: Path, cut: list[bool],
                                                                    caplog: pytest.LogCaptureFixture) -> None:
    cut.append(True)
    with Store.open(tmp_path / "s", MemoryEngine, create=True, plugins=[ArchivePlugin(str(repo), interval=0.01)]) as s:
        assert "is archived once it can" in caplog.text
        put(s)
        cut.clear()
        until(lambda: archived(repo) == 1)


def test_a_store_does_not_open_with_another_ones_repository(repo: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", MemoryEngine, create=True, plugins=[ArchivePlugin(str(repo))]) as s:
        put(s)
    with pytest.raises(ForeignStore):
        Store.open(tmp_path / "other", MemoryEngine, create=True, plugins=[ArchivePlugin(str(repo))])
    with pytest.raises(SettingError, match="interval"):
        ArchivePlugin(str(repo), interval=-1)


def test_one_that_is_fenced_stops_and_ends_the_commits_that_wait(repo: Path, tmp_path: Path) -> None:
    plugin = ArchiveAckPlugin(str(repo), interval=60)
    with Store.open(tmp_path / "s", MemoryEngine, create=True, plugins=[plugin]) as s:
        put(s)
        with Repository.open(repo) as repository:
            repository.archiver(LocalSource(s)).close()
        for _ in range(2):
            with pytest.raises(ConditionNotMet):
                put(s)
    assert archived(repo) == 1


def test_a_process_beside_a_store_archives_it(repo: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with Store.open(tmp_path / "s", MemoryEngine, create=True) as s, Repository.open(repo) as repository:
        put(s, 2)
        stop = REAL.scheduler.event()
        task = REAL.scheduler.spawn("archive", lambda: archive_source(
            repository, s, Connection(), interval=0.01, stop=stop, told=lambda *said: told.append(said)))
        until(lambda: archived(repo) == 2)
        put(s, 2)
        stop.set()
        assert task.join(30)
        assert archived(repo) == 4
        assert told[-1][0] == 4
        put(s)
        archive_source(repository, s, Connection(), once=True)
        assert archived(repo) == 5
        first = repository.archiver(LocalSource(s))
        archive_source(repository, s, Connection(), once=True)
        put(s)
        with pytest.raises(Fenced, match="archived by writer"):
            first.step()
