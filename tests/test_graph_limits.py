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

from holdfast.engine.contract import Context
from holdfast.engine.errors import Damaged, DiskFull
from holdfast.engine.graph import GraphEngine, lmdbstate


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
        GraphEngine.open(state, Context())
    assert caught.value.errno == errno.ENOMEM
    assert sizes[-1] >= lmdbstate.LEAST_MAP_SIZE


_CHILD = """
import logging, resource, sys
from pathlib import Path
from holdfast.engine.contract import Context
from holdfast.engine.graph import GraphEngine
logging.basicConfig(format="%(message)s")
engine = GraphEngine.open(Path(sys.argv[1]), Context())
room = engine._lmdb.env.info()["map_size"]
engine.view().check()
print(room)
engine.close()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the bound is not kept")
def test_a_bound_on_address_space_makes_the_map_smaller(state: Path) -> None:
    """A map of 1 TiB has no place under `ulimit -v`: a healthy store was called damaged. It opens with the largest map
    that leaves room for the rest of the process, and says so."""
    bound = 4 << 30

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))

    done = subprocess.run([sys.executable, "-c", _CHILD, str(state)], capture_output=True, text=True, timeout=60,
                          preexec_fn=limit, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    assert lmdbstate.LEAST_MAP_SIZE // 2 <= int(done.stdout) <= bound // 2
    assert "no address space for map_size" in done.stderr
