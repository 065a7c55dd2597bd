"""What is not checkpointed when an image is asked for would be replayed by everyone who checks or restores the copy.

A source that checkpoints beside its commits does so first, where it is much; one that would hold them up does not.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import GraphEngine, MemoryEngine, RecordsEngine, Store
from holdfast.engine.source.local import LocalSource


@pytest.mark.parametrize(("engine", "expected"), [(GraphEngine, 5), (RecordsEngine, 5), (MemoryEngine, 0)])
@pytest.mark.parametrize("much", [True, False])
def test_image_of_a_store_with_much_pending(engine: type[Any], expected: int, much: bool, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", engine) as store:
        for _ in range(5):
            with store.transaction() as tx:
                if engine is GraphEngine:
                    tx.add_node("Person")
                elif engine is RecordsEngine:
                    tx.insert(random.Random(1).randbytes(100))
                else:
                    tx.put(b"key", b"value")
        with LocalSource(store, much_pending=0 if much else 1 << 30) as source:
            grant = source.lease("test", image=True)
            assert grant.position.txid == (expected if much else 0)
            assert [r.txid for r in source.read_log(grant.id, grant.position, 5)] == list(
                range(grant.position.txid + 1, 6))
            source.release(grant.id)
