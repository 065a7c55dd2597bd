"""With which image a new one is compared, what is said beforehand, and the sizes that are shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from repository_rig import Objects, Rig, World, world

from holdfast.backup.repository import names
from holdfast.backup.repository.errors import CopyReadOnly, StorageDenied
from holdfast.backup.repository.repository import Repository
from holdfast.engine.errors import DiskFull, OtherBranch
from holdfast.engine.source.interface import MemberInfo, SourceInfo


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    with world(tmp_path / "store", rig.env) as made:
        made.write(3, size=4000)
        made.store.checkpoint()
        yield made


def as_member(here: World, monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    info: Callable[[], SourceInfo] = type(here.source).info.__get__(here.source)
    member = None if name is None else MemberInfo(name=name, role="follower", healthy=True)
    monkeypatch.setattr(here.source, "info", lambda: replace(info(), member=member))


def test_an_image_is_compared_with_the_last_one_of_the_same_member(rig: Rig, here: World,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Members lay out their files each in its own way. What differs by that was stored at each change of member."""
    of: dict[str | None, str] = {}
    for name, base in (("one", None), ("two", "one"), ("one", "one"), ("two", "two"), ("three", "two"), (None, "three"),
                       (None, None), ("one", "one")):
        as_member(here, monkeypatch, name)
        planned = rig.repository.plan_backup(here.source).base
        report = rig.repository.backup(here.source)
        assert report.base == planned == ("" if not of else of[base])
        of[name] = report.image


def stages(repository: Repository, here: World, **how: Any) -> list[tuple[str, int, int]]:
    said: list[tuple[str, int, int]] = []
    repository.backup(here.source, progress=lambda *one: said.append(one), **how)
    return said


def test_a_run_without_a_base_says_beforehand_how_much_it_sends(rig: Rig, here: World,
                                                                caplog: pytest.LogCaptureFixture) -> None:
    """Expected of the first image, and a surprise later: then it is a warning."""
    caplog.set_level(logging.INFO, "holdfast.repository")
    packs: list[list[str]] = []

    def fate(what: str, name: str) -> None:
        if what == "put" and name.startswith(f"{names.PACKS}/"):
            packs.append([f"{one.levelname} {one.getMessage()}" for one in caplog.records if "are sent" in one.message])

    rig.storage.fate = fate
    for how, level in (({}, "INFO"), ({"block_bytes": 4096}, "WARNING")):
        caplog.clear()
        packs.clear()
        said = stages(rig.repository, here, **how)
        total = rig.repository.plan_backup(here.source).image_bytes
        assert total > 1000
        assert said[0] == ("whole image", 0, total)
        assert {stage for stage, _, _ in said} <= {"whole image", "log"}
        [told] = packs[0]
        assert told.startswith(f"{level} there is no image in memory:// that this one can be compared with: all "
                               f"{total:,} bytes are sent")
    caplog.clear()
    assert {stage for stage, _, _ in stages(rig.repository, here, block_bytes=4096)} <= {"image", "log"}
    assert not [one for one in caplog.records if "are sent" in one.message]


def test_the_sizes_of_an_image_are_shown_one_by_one(rig: Rig, here: World) -> None:
    """Its files; what was left to store after comparing; and what that takes, compressed."""
    first = rig.repository.backup(here.source)
    here.write(1)
    here.store.checkpoint()
    second = rig.repository.backup(here.source, block_bytes=4096)
    third = rig.repository.backup(here.source, block_bytes=4096)
    for report in (first, second):
        assert report.image_bytes <= report.content_bytes < report.image_bytes + 1000, "all blocks, and a leaf"
        assert 0 < report.new_bytes < report.content_bytes / 2, "it is a repeated word"
    assert (third.content_bytes, third.new_bytes) == (0, 0)
    info = rig.repository.info()
    assert [(one.image_bytes, one.content_bytes, one.new_bytes) for one in info.images] == [
        (one.image_bytes, one.content_bytes, one.new_bytes) for one in (first, second, third)]
    assert info.content_bytes == first.content_bytes + second.content_bytes
    assert info.stored_bytes == first.new_bytes + second.new_bytes


def test_a_dry_run_changes_nothing_and_says_what_would_be_sent(rig: Rig, here: World) -> None:
    plan = rig.repository.plan_backup(here.source)
    assert rig.objects == {}
    assert (plan.base, plan.rights.delete) == ("", True)
    assert "send all of them" in str(plan)
    report = rig.repository.backup(here.source)
    assert (plan.image_bytes, plan.branch, plan.engine) == (report.image_bytes, report.branch, report.engine)
    there = dict(rig.objects)
    again = rig.repository.plan_backup(here.source)
    assert rig.objects == there
    assert again.base == report.image
    assert f"compare them with image {report.image[:8]}" in str(again)
    assert abs(again.clock_ahead) < 1
    assert here.store.status()["leases"] == []


def test_a_dry_run_fails_as_the_backup_would(rig: Rig, here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                             ) -> None:
    rig.repository.backup(here.source)
    rig.repository.restore(tmp_path / "other", engine=here.engine)
    other = here.branched(tmp_path / "other", here.txid, rig.env)
    try:
        with pytest.raises(OtherBranch):
            rig.repository.plan_backup(other.source)
        branch = other.store.history.branch.id.hex()
        assert rig.repository.plan_backup(other.source, accept_branch=branch).branch == branch
        assert [one.id for one in rig.opened().info().branches] == [here.store.history.branch.id.hex()]
    finally:
        other.close()

    def denied(name: str, data: bytes) -> None:
        raise StorageDenied("you may not put")

    with monkeypatch.context() as patch:
        patch.setattr(rig.storage, "room", lambda: 1000)
        with pytest.raises(DiskFull):
            rig.repository.plan_backup(here.source)
    with monkeypatch.context() as patch:
        patch.setattr(rig.storage, "put", denied)
        with pytest.raises(StorageDenied):
            rig.repository.plan_backup(here.source)
    copy = Objects(rig.clock, {**rig.objects, names.COPY_OF: (b"memory://", 0)})
    with pytest.raises(CopyReadOnly):
        rig.opened(copy).plan_backup(here.source)
