"""What would make a long run fail is found before it: no room, a clock that is wrong, a right that is missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from repository_rig import Objects, Rig, World, world

from holdfast.backup.repository import copying, names
from holdfast.backup.repository.errors import StorageDenied
from holdfast.backup.repository.repository import Repository
from holdfast.backup.repository.storage import early, url
from holdfast.backup.repository.storage.local import LocalObjectStore
from holdfast.engine.errors import DiskFull
from holdfast.replay.files import SPARE_BYTES

HOUR_US = 3600 * 1_000_000


class Small(Objects):
    left = 0

    def room(self) -> int | None:
        return self.left


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.storage = small = Small(rig.clock, rig.objects)
    small.left = 1 << 40
    rig.repository = rig.opened(small)
    return rig


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    with world(tmp_path / "store", rig.env) as made:
        made.write(5, size=4000)
        made.store.checkpoint()
        yield made


def warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def test_a_backup_needs_room_before_it_puts_anything(rig: Rig, here: World) -> None:
    rig.storage.left = SPARE_BYTES - 1  # type: ignore[attr-defined]
    with pytest.raises(DiskFull, match="are needed in memory://"):
        rig.repository.backup(here.source)
    assert not any(name.startswith(f"{names.PACKS}/") for name in rig.objects)
    assert rig.repository.info().running == ()


def test_a_first_image_that_may_not_fit_says_so(rig: Rig, here: World, caplog: pytest.LogCaptureFixture,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not refused, since it may be compressed that much. The next one is compared, so nobody knows."""
    monkeypatch.setattr(early, "check_room", lambda store, needed: None)
    size = rig.repository.backup(here.source).image_bytes
    assert not warnings(caplog)
    for left, block_bytes, told in ((size - 1, 32768, True), (size, 4096, False), (0, 4096, False)):
        rig.storage.left = left + SPARE_BYTES  # type: ignore[attr-defined]
        monkeypatch.setattr(rig.storage, "room", lambda left=left: left if left else SPARE_BYTES)
        monkeypatch.setattr("holdfast.backup.repository.imaging.check_room", lambda store, needed: None)
        caplog.clear()
        rig.repository.backup(here.source, block_bytes=block_bytes)
        assert ("it fits only if" in warnings(caplog)) == told


@pytest.mark.parametrize("ahead_us", [2 * HOUR_US, -2 * HOUR_US, HOUR_US // 2])
def test_a_clock_that_is_wrong_is_told_at_the_start(ahead_us: int, rig: Rig, here: World,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    """Of the storage, or of this machine: nobody knows which. At the first request, so before any block is sent."""
    rig.storage.clock = SimpleNamespace(now_us=lambda: rig.clock.time_us + ahead_us)  # type: ignore[assignment]
    said: list[str] = []

    def fate(what: str, name: str) -> None:
        if what == "put" and name.startswith(f"{names.PACKS}/"):
            said.append(warnings(caplog))

    rig.storage.fate = fate
    rig.repository.backup(here.source)
    told = "ahead of" if ahead_us > HOUR_US else "behind" if ahead_us < -HOUR_US else ""
    assert said
    for text in said:
        assert f"{told} this machine's" in text if told else not text
    if told:
        assert "is 7,199 s " in said[0], "the time of the requests is not counted"


def test_a_copy_that_cannot_fit_copies_nothing(rig: Rig, here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.objects[names.REPOSITORY] = b"the document", 0
    rig.repository.backup(here.source)
    dest = Small(rig.clock)
    dest.url = "memory://copy"
    monkeypatch.setattr(copying, "open_storage", lambda place, env: {"from": rig.storage, "to": dest}[place])
    sizes = sum(len(data) for name, (data, _) in rig.objects.items() if not name.startswith(("catalog/", "repository")))
    dest.left = sizes + SPARE_BYTES - 1
    with pytest.raises(DiskFull, match="are needed in memory://copy"):
        copying.copy("from", "to", env=rig.env)
    assert {name.split("/")[0] for name in dest.objects} <= {"repository", "copy-of", "probes"}
    dest.left += 1
    would = copying.copy("from", "to", env=rig.env, dry_run=True)
    assert not any(name.startswith("packs/") for name in dest.objects), "a dry run copies nothing"
    report = copying.copy("from", "to", env=rig.env)
    assert (would.objects, would.bytes, would.entry) == (report.objects, report.bytes, report.entry)
    assert report.bytes == sizes
    assert "would be copied" in str(would)


def test_a_dry_run_of_a_first_copy_makes_nothing(rig: Rig, here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.objects[names.REPOSITORY] = b"the document", 0
    rig.repository.backup(here.source)
    dest = Objects(rig.clock)
    monkeypatch.setattr(dest, "url", "memory://copy", raising=False)
    monkeypatch.setattr(copying, "open_storage", lambda place, env: {"from": rig.storage, "to": dest}[place])
    assert copying.copy("from", "to", env=rig.env, dry_run=True).objects > 0
    assert dest.objects == {}


def test_a_directory_says_how_much_room_it_has(tmp_path: Path) -> None:
    """Also before it is made."""
    from holdfast.engine.env import REAL

    for place in (tmp_path, tmp_path / "not" / "yet"):
        with LocalObjectStore(place) as store:
            room = store.room()
        assert room is not None
        assert abs(room - REAL.files.free(tmp_path)) < 1 << 30


@pytest.mark.parametrize("right", ["put", "list", "get"])
def test_a_right_that_is_missing_is_missed_before_a_block_is_read(right: str, rig: Rig, here: World,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """WAL-G 969: it failed after seven hours."""
    read: list[str] = []

    def denied(*arguments: Any) -> Any:
        raise StorageDenied(f"you may not {right}")

    def blocks(*arguments: Any) -> Any:
        read.append("blocks")
        return before(*arguments)

    before: Callable[..., Any] = here.source.read_blocks
    monkeypatch.setattr(here.source, "read_blocks", blocks)
    monkeypatch.setattr(rig.storage, right, denied)
    with pytest.raises(StorageDenied, match=f"may not {right}"):
        rig.opened(rig.storage).backup(here.source)
    assert not read


def test_init_tells_of_a_wrong_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
                                     ) -> None:
    rig = Rig()
    storage = Objects(SimpleNamespace(now_us=lambda: rig.clock.time_us - 2 * HOUR_US))  # type: ignore[arg-type]
    monkeypatch.setattr("holdfast.backup.repository.repository.open_storage", lambda place, env: storage)
    Repository.init(tmp_path, env=rig.env)
    assert "7,200 s behind this" in warnings(caplog)
    assert url.open_storage(tmp_path).room()
