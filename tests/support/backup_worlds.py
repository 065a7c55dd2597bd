"""What the tests of backup, restore and verify share: small stores, and chunks as small."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from holdfast.backup import Limits, Policy
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.engine import Engine
from holdfast.engine.env import REAL, Env
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store

SMALL = Settings(segment_bytes=128 << 10, heartbeat_s=0)
COMPACTING = Policy(compact=0.0, compact_floor=0, keep_points="none")
NOT_COMPACTING = Policy(compact=None)
ENGINES: tuple[type[Engine[Any, Any]], ...] = (MemoryEngine, RecordsEngine)


def open_store(path: Path, engine: type[Engine[Any, Any]] = MemoryEngine, env: Env = REAL,
               settings: Settings = SMALL) -> Store[Any, Any]:
    return Store.open(path, engine, settings=settings, env=env)


def write(store: Store[Any, Any], seed: int, count: int = 1, size: int = 100) -> None:
    """`count` transactions, each of which changes something else."""
    for n in range(count):
        with store.transaction() as tx:
            value = hashlib.shake_128(b"%d.%d" % (seed, n)).digest(size)
            if isinstance(store.engine, MemoryEngine):
                tx.put(b"%d.%d" % (seed, n % 50), value)
                tx.put(b"last", value[:20])
            else:
                tx.insert(value)


def digest(store: Store[Any, Any]) -> bytes:
    with store.snapshot() as view:
        assert list(view.check()) == []
        found: bytes = view.digest()
        return found


def digest_at(path: Path, engine: type[Engine[Any, Any]]) -> bytes:
    """Of a store on disk, opened read-only."""
    with Store.open(path, engine, read_only=True, settings=SMALL) as store:
        return digest(store)


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def in_chunks(size: int) -> Policy:
    """Copy in chunks of `size` bytes, so that small images have many."""
    return Policy(limits=Limits(chunk_bytes=size))
