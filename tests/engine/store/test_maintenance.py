"""Backpressure and maintenance by themselves: no store, and no log but the figures that they ask for."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.engine.env import REAL, DirectoryLock
from holdfast.engine.errors import DirectoryMoved, DiskFull, RolledBack
from holdfast.engine.model.positions import Position
from holdfast.engine.store.backpressure import Backpressure
from holdfast.engine.store.hooks import Hooks
from holdfast.engine.store.leases import Leases
from holdfast.engine.store.maintenance import Maintenance
from holdfast.engine.store.settings import Settings

SETTINGS = Settings(checkpoint_soft_bytes=100, checkpoint_hard_bytes=200, unwritten_bytes=100_000, wait_s=0.2,
                    heartbeat_s=0, clock_is_right=True)


class Figures:
    """What a store's parts say of themselves, and what they were asked to do."""

    def __init__(self) -> None:
        self.pending = self.waiting_bytes = self.unheard_bytes = 0
        self.poison: BaseException | None = None
        self.syncs = 0

    @property
    def writer(self) -> Figures:
        """The log's, which it stands for too."""
        return self

    def pending_bytes(self) -> int:
        return self.pending

    def sync_within(self, seconds: float) -> None:
        self.syncs += 1

    def wait_until(self, reached: Any, timeout: float) -> bool:
        return bool(reached())


@pytest.fixture
def figures() -> Figures:
    return Figures()


@pytest.fixture
def pressure(figures: Figures) -> Backpressure:
    parts: Any = figures
    return Backpressure(parts, parts, parts, SETTINGS, REAL)


def test_below_the_bounds_nobody_waits(figures: Figures, pressure: Backpressure) -> None:
    assert pressure.slow == 100
    figures.pending = 199
    pressure.wait(lambda: True)
    assert pressure.wanted.is_set()
    assert pressure.delayed == figures.syncs == 0


def test_what_is_not_written_is_synced_first(figures: Figures, pressure: Backpressure) -> None:
    figures.unheard_bytes = 100_000
    with pytest.raises(RolledBack, match="to be answered by plugins"):
        pressure.wait(lambda: True)
    assert pressure.delayed == figures.syncs == 1
    pressure.closing = True
    pressure.wait(lambda: True)  # and whoever comes while it closes is told by the store


def test_why_no_checkpoint_can_be_made_is_told(figures: Figures, pressure: Backpressure) -> None:
    figures.pending = 200
    with pytest.raises(RolledBack, match="did not catch up"):
        pressure.wait(lambda: True)
    for error in (DiskFull("no room at all"), DirectoryMoved("it is elsewhere")):
        pressure.blocked = error
        with pytest.raises(type(error), match=error.message) as caught:
            pressure.wait(lambda: True)
        assert isinstance(caught.value, RolledBack)
    pressure.wait(lambda: False)
    pressure.closing = True
    with pytest.raises(RolledBack, match="being closed"):
        pressure.wait(lambda: True)
    figures.poison = OSError("the disk")
    pressure.wait(lambda: True)


@contextmanager
def closed_after(lock: DirectoryLock) -> Iterator[DirectoryLock]:
    try:
        yield lock
    finally:
        lock.release()


class Kept(SimpleNamespace):
    """What is maintained: its checkpoints fail until there is room."""

    room = False
    poisoned = False
    checkpoints = 0

    def checkpoint(self) -> Position:
        self.checkpoints += 1
        if not self.room:
            raise DiskFull("no room for it")
        self.engine.pending = 0
        return Position(1, b"")


def test_maintenance_makes_checkpoints_and_says_why_not(tmp_path: Path, figures: Figures,
                                                        pressure: Backpressure) -> None:
    log: Any = SimpleNamespace(end=Position(1, b""), writer=SimpleNamespace(wants_spare=False, on_sealed=None))
    kept = Kept(directory=tmp_path, engine=figures, log=log, settings=SETTINGS, env=REAL, group_commit=figures,
                leases=Leases(REAL), hooks=Hooks([], REAL.scheduler))
    with closed_after(REAL.files.lock(tmp_path / "LOCK", "a test")) as lock:
        keeper = Maintenance(kept, pressure, lock)
        keeper.close()  # its thread; the rounds are made here
        pressure.closing = False
        keeper.round()
        assert kept.checkpoints == 0
        figures.pending = 150
        keeper.round()
        assert isinstance(pressure.blocked, DiskFull)
        keeper.round()
        assert kept.checkpoints == 1, "it tries again after a while, not at once"
        keeper._retry = 0.0
        kept.room = True
        keeper.round()
        assert (kept.checkpoints, figures.pending) == (2, 0)
        assert str(pressure.blocked) == "None"


def test_maintenance_keeps_nothing_alive(tmp_path: Path, figures: Figures, pressure: Backpressure) -> None:
    """A store that everybody has forgotten can be closed, and its thread ends."""
    log: Any = SimpleNamespace(end=Position(1, b""), writer=SimpleNamespace(wants_spare=False, on_sealed=None))
    kept = Kept(directory=tmp_path, engine=figures, log=log, settings=SETTINGS, env=REAL, group_commit=figures,
                leases=Leases(REAL), hooks=Hooks([], REAL.scheduler))
    with closed_after(REAL.files.lock(tmp_path / "LOCK", "a test")) as lock:
        keeper = Maintenance(kept, pressure, lock)
        del kept
        gc.collect()
        pressure.wanted.set()
        assert keeper._task.join(30)
