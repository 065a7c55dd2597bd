"""What the system refuses to the graph engine is told as what it is: its bytes are not damaged by it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest
from graph_rig import Rig

from holdfast.engine.builtin.graph import GraphEngine, lmdbstate
from holdfast.engine.contract.engine import Context
from holdfast.engine.errors import Damaged, DiskFull
from holdfast.engine.store.store import Store


@pytest.fixture
def state(tmp_path: Path) -> Path:
    rig = Rig(tmp_path)
    tx = rig.engine.begin()
    tx.add_node("A")
    rig.commit(tx)
    rig.checkpoint()
    rig.engine.close()
    return rig.directory / "state"


def _error(kind: type[lmdb.Error], code: int) -> lmdb.Error:
    error = kind("somewhere")
    error.code = code  # type: ignore[misc]  # as the library itself sets it
    return error


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EAGAIN, errno.EIO, errno.ENOLCK])
def test_what_the_system_refuses_is_no_damage(state: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Whatever LMDB said when it opened a healthy state, but for two errors, was told as damage, with the advice to
    restore from a backup."""
    def refuse(*_: object, **__: object) -> None:
        raise _error(lmdb.Error, number)

    monkeypatch.setattr(lmdb, "open", refuse)
    with pytest.raises(OSError) as caught:
        GraphEngine.open(state, Context())
    assert (caught.value.errno, caught.value.filename) == (number, str(state / "data.mdb"))


def test_no_room_is_no_damage_either(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise _error(lmdb.DiskError, errno.ENOSPC)

    monkeypatch.setattr(lmdb, "open", refuse)
    with pytest.raises(DiskFull):
        GraphEngine.open(state, Context())


def test_what_lmdb_itself_says_of_the_bytes_is_damage(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise _error(lmdb.CorruptedError, -30796)

    monkeypatch.setattr(lmdb, "open", refuse)
    with pytest.raises(Damaged):
        GraphEngine.open(state, Context())


def test_no_memory_for_any_map_is_no_damage(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def refuse(*_: object, map_size: int, **__: object) -> None:
        sizes.append(map_size)
        raise _error(lmdb.MemoryError, errno.ENOMEM)

    monkeypatch.setattr(lmdb, "open", refuse)
    with pytest.raises(OSError) as caught:
        GraphEngine.open(state, Context(), read_only=True)
    assert caught.value.errno == errno.ENOMEM
    assert sizes[-1] >= lmdbstate.LEAST_MAP_SIZE


_CHILD = """
import logging, sys
from pathlib import Path
from holdfast.engine.contract.engine import Context
from holdfast.engine.builtin.graph import GraphEngine
logging.basicConfig(format="%(message)s")
engine = GraphEngine.open(Path(sys.argv[1]), Context(), read_only=sys.argv[2] == "read")
room = engine._lmdb.environment.info()["map_size"]
engine.view().check()
print(room)
engine.close()
"""
BOUND = 4 << 30


def _bounded(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A Python under `ulimit -v`."""
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (BOUND, BOUND))

    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, preexec_fn=limit,
                          env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, check=False)


def test_a_bound_on_address_space_makes_a_readers_map_smaller(state: Path) -> None:
    """A map of 1 TiB has no place under `ulimit -v`: a healthy store was called damaged. Who only reads takes the
    largest map that leaves room for the rest of the process, and says so."""
    done = _bounded("-c", _CHILD, state, "read")
    assert done.returncode == 0, done.stderr
    assert lmdbstate.LEAST_MAP_SIZE // 2 <= int(done.stdout) <= BOUND // 2
    assert "no address space for map_size" in done.stderr


def test_a_store_is_not_opened_for_writing_with_a_smaller_map_than_was_asked_for(tmp_path: Path) -> None:
    """It was served with a smaller map and a line in the log: it would have come to that bound much later, with
    `DiskFull` on a disk that has room."""
    with Store.open(tmp_path / "s", GraphEngine) as store, store.transaction() as tx:
        tx.add_node("A")
    done = _bounded("-c", "from holdfast.backup.cli import main; main()", "serve", tmp_path / "s", "--listen", ":0")
    assert done.returncode == 7, done.stderr
    assert "no address space for map_size, 1,099,511,627,776 bytes" in done.stderr
    assert "ulimit -v" in done.stderr
    assert "Traceback" not in done.stderr
