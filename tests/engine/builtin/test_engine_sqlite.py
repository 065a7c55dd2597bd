"""What is particular to the SQLite engine."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from workloads import WORKLOADS

from holdfast.engine.builtin.wrapped.sqlite import _MAGIC, SqliteEngine, _connect, _sealer
from holdfast.engine.errors import Damaged, DiskFull, UnsupportedFormat
from holdfast.engine.model import document
from holdfast.engine.testing.support.driver import Driver


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(WORKLOADS["sqlite"](), tmp_path / "a state? #1, 100%41")  # a name that needs quoting
    yield driver
    driver.close()


def tamper(it: Driver, *statements: str) -> None:
    with closing(sqlite3.connect(it.directory / "state.db")) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def fill(it: Driver, count: int, size: int = 10) -> None:
    it.commit([("put", b"key%d" % i, bytes([i]) * size) for i in range(count)])


@pytest.mark.parametrize("statement", [
    "DELETE FROM pairs WHERE key = CAST('key1' AS BLOB)",
    "UPDATE pairs SET value = x'00' WHERE key = CAST('key1' AS BLOB)",
    "UPDATE pairs SET value = CAST(value AS TEXT) WHERE key = CAST('key1' AS BLOB)",
    "UPDATE pairs SET key = CAST(key AS TEXT) WHERE key = CAST('key1' AS BLOB)",
    "UPDATE pairs SET key = x'00' WHERE key = CAST('key1' AS BLOB)",
    "UPDATE pairs SET value = (SELECT value FROM pairs WHERE key = CAST('key0' AS BLOB))",
    "INSERT INTO pairs SELECT x'00', value FROM pairs LIMIT 1",
])
def test_rows_that_others_changed_are_found(it: Driver, statement: str) -> None:
    fill(it, 3)
    it.checkpoint()
    it.close()
    tamper(it, statement)
    it.reopen()
    with it.engine.view() as view:
        assert list(view.check())
        with pytest.raises(Damaged, match=r"state\.db"):
            list(view.items())
        with pytest.raises(Damaged, match=r"state\.db"):
            view.digest()


def test_a_row_too_many_is_found_though_its_checksum_is_right(it: Driver) -> None:
    fill(it, 3)
    it.checkpoint()
    it.close()
    with closing(sqlite3.connect(it.directory / "state.db")) as connection, connection:
        connection.execute("INSERT INTO pairs VALUES (?, ?)", (b"more", _sealer(Path()).sealed(b"more", b"1")))
    it.reopen()
    with it.engine.view() as view:
        assert view.get(b"more") == b"1"
        with pytest.raises(Damaged, match="4 rows that are not the 3"):
            list(view.items())


@pytest.mark.parametrize("statement", ["DELETE FROM state", "INSERT INTO state SELECT * FROM state", "DROP TABLE state",
                                       "UPDATE state SET document = 'text'"])
def test_a_state_without_its_document_is_damage(it: Driver, statement: str) -> None:
    it.close()
    tamper(it, statement)
    with pytest.raises(Damaged):
        SqliteEngine.open(it.directory, it.context)


def test_other_files_are_damage(it: Driver) -> None:
    it.close()
    path = it.directory / "state.db"
    for content, wrong in ((b"something else" * 1000, "not a database"), (b"", "no such table")):
        path.write_bytes(content)
        for read_only in (False, True):
            with pytest.raises(Damaged, match=wrong):
                SqliteEngine.open(it.directory, it.context, read_only=read_only)
            for side in ("state.db-wal", "state.db-shm"):
                (it.directory / side).unlink(missing_ok=True)
    path.unlink()
    with pytest.raises(Damaged, match="missing"):
        SqliteEngine.open(it.directory, it.context)
    path.mkdir()
    with pytest.raises(OSError, match="unable to open"):
        SqliteEngine.open(it.directory, it.context)


def test_a_schema_that_is_no_text_is_damage(it: Driver) -> None:
    """SQLite quotes it in its message, which Python cannot decode then."""
    it.close()
    path = it.directory / "state.db"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"CREATE TABLE state", b"CREATE T\xffBLE state"))
    for read_only in (False, True):
        with pytest.raises(Damaged, match="malformed"):
            SqliteEngine.open(it.directory, it.context, read_only=read_only)


def test_a_checkpoint_without_room_changes_nothing_and_works_later(it: Driver) -> None:
    fill(it, 3)
    it.checkpoint()
    engine = it.engine
    assert isinstance(engine, SqliteEngine)
    assert engine._writer is not None
    pages = engine._writer.execute("PRAGMA page_count").fetchone()[0]
    engine._writer.execute(f"PRAGMA max_page_count = {pages}")
    fill(it, 200, 1000)
    for _ in range(2):
        with pytest.raises(DiskFull):
            engine.checkpoint(it.end)
        assert engine.position == it.position(1)
        assert engine.pending_bytes() >= len(it.records[1].payload)
        it.compare_state()
    engine._writer.execute("PRAGMA max_page_count = 100000")
    it.checkpoint()
    it.compare_state()
    it.reopen()
    it.compare_state()


def test_sqlites_log_does_not_grow_from_checkpoint_to_checkpoint(it: Driver) -> None:
    def size() -> int:
        return (it.directory / "state.db-wal").stat().st_size

    def checkpoints(count: int) -> None:
        for i in range(count):
            it.commit([("put", b"key", bytes([i]) * 3000)])
            it.checkpoint()

    checkpoints(3)
    usual = size()
    checkpoints(20)
    assert size() == usual
    with it.engine.view() as view:
        held = dict(view.items())
        checkpoints(20)
        assert size() > 10 * usual  # what the view reads cannot be overwritten
        assert dict(view.items()) == held
    checkpoints(2)  # the first of these moves all of it into the file, and the second begins anew
    before = size()
    checkpoints(20)
    assert size() == before


def test_no_room_for_moving_sqlites_log_is_no_failure(it: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = it.engine

    class Full:
        """A connection on which SQLite's own checkpoints fail for lack of room."""

        def __init__(self, writer: sqlite3.Connection) -> None:
            self._writer = writer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._writer, name)

        def execute(self, statement: str, *rest: Any) -> Any:
            if "wal_checkpoint" in statement:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return self._writer.execute(statement, *rest)

    monkeypatch.setattr(engine, "_writer", Full(engine._writer))
    fill(it, 3)
    it.checkpoint()
    it.compare_state()
    it.reopen()
    it.compare_state()


def test_what_was_deleted_is_not_in_the_image(it: Driver) -> None:
    it.commit([("put", b"key", b"a secret " * 100), ("put", b"other", b"public " * 100)])
    it.checkpoint()
    it.commit([("delete", 0)])
    it.checkpoint()
    (content,) = it.image().values()
    assert b"public " * 10 in content
    assert b"secret" not in content


def test_the_files_are_this_users_alone(it: Driver) -> None:
    fill(it, 1)
    it.checkpoint()
    assert {p.stat().st_mode & 0o077 for p in it.directory.iterdir()} == {0}


def test_newer_documents_are_refused_by_version(it: Driver) -> None:
    it.close()
    with closing(sqlite3.connect(it.directory / "state.db")) as connection, connection:
        connection.execute("UPDATE state SET document = ?", (document.encode(_MAGIC, 3, {}),))
    with pytest.raises(UnsupportedFormat, match="version 3"):
        SqliteEngine.open(it.directory, it.context)


def test_a_check_does_not_keep_others_from_reading(it: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions read from the same snapshot, so that commits would wait for it."""
    fill(it, 3)
    it.checkpoint()
    view: Any = it.engine.view()
    read: list[bytes | None] = []

    def watched(path: Path, mode: str) -> sqlite3.Connection:
        thread = threading.Thread(target=lambda: read.append(view.get(b"key1")))
        thread.start()
        thread.join(5)
        return _connect(path, mode)

    monkeypatch.setattr("holdfast.engine.builtin.wrapped.sqlite._connect", watched)
    assert list(view.check()) == []
    assert read == [bytes([1]) * 10]
    view.close()


def test_a_log_that_a_private_copy_cannot_take_in_is_an_error(it: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is opened then does not read the log, and would show an older state, or parts of it."""
    fill(it, 3)
    it.checkpoint()
    left = it.killed()
    readers: list[sqlite3.Connection] = []

    def read_meanwhile(path: Path, mode: str) -> sqlite3.Connection:
        if mode == "rw" and not readers:
            readers.append(_connect(path, "rw"))
            readers[0].execute("BEGIN")
            readers[0].execute("SELECT * FROM pairs").fetchone()
        connection = _connect(path, mode)
        connection.execute("PRAGMA busy_timeout = 0")
        return connection

    monkeypatch.setattr("holdfast.engine.builtin.wrapped.sqlite._connect", read_meanwhile)
    with pytest.raises(OSError, match="did not move its log"):
        SqliteEngine.open(left, it.context, read_only=True)
    readers[0].close()
