"""What tests of archiving share: a store that is written to, how far it is archived, storage that is cut off."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.backup import Repository
from holdfast.backup.repository.errors import StorageUnavailable
from holdfast.backup.repository.storage.local import LocalObjectStore
from holdfast.engine import Store


def put(store: Store[Any, Any], count: int = 1, size: int = 0) -> None:
    """Transactions, each of which adds a key."""
    for _ in range(count):
        with store.transaction() as tx:
            tx.put(b"%d" % time.monotonic_ns(), bytes(size))


def archived(repo: Path) -> int | None:
    """The last transaction that the repository has; None: it could not be asked, or has none."""
    try:
        with Repository.open(repo) as repository:
            return next((branch.archived_to for branch in repository.info().branches), None)
    except StorageUnavailable:
        return None


def until(happened: Callable[[], Any]) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def cut_off(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What makes the storage of this process unavailable while it has something in it."""
    off: list[bool] = []
    for name in ("put", "get", "list"):
        real = getattr(LocalObjectStore, name)

        def call(self: Any, *given: Any, real: Any = real) -> Any:
            if off:
                raise StorageUnavailable("the network is down")
            return real(self, *given)

        monkeypatch.setattr(LocalObjectStore, name, call)
    return off
