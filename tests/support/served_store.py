"""Fixtures: a store that is served, for the tests of the commands. Others have a `store` of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backup_worlds import SMALL, write

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.source.http.service import BackupService
from holdfast.engine.store.store import Store


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.delenv("HOLDFAST_TOKEN", raising=False)


@pytest.fixture
def store(tmp_path: Path, runtime: None) -> Iterator[Store[Any, Any]]:
    service = BackupService(online_backup_server="127.0.0.1:0")
    with Store.open(tmp_path / "store", MemoryEngine, plugins=[service], settings=SMALL) as opened:
        write(opened, 1, 10)
        opened.checkpoint()
        yield opened


@pytest.fixture
def uri(store: Store[Any, Any]) -> str:
    assert store.backup_uri is not None
    return store.backup_uri
