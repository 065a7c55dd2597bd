"""What is done to a repository is told, an expiry can be vetoed, and a mark says what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_rig import holdfast, told
from repository_rig import Rig, World, world

from holdfast.backup import Keep, RepositoryPlugin
from holdfast.backup.report import Told
from holdfast.backup.repository.errors import ExpiryVetoed
from holdfast.backup.repository.reports import Expired
from holdfast.engine.errors import HoldfastError, RestorePointOutOfRange, SourceUnavailable
from holdfast.engine.store.store import Store

DAY_US = 24 * 3600 * 1_000_000


class Watching(RepositoryPlugin):
    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.plans: list[Expired] = []
        self.reason: str | None = None

    def expiring(self, plan: Expired) -> str | None:
        self.plans.append(plan)
        return self.reason

    def done(self, verb: str, report: Told) -> None:
        self.told.append((verb, report))

    def failed(self, verb: str, error: HoldfastError) -> None:
        self.told.append((verb, error))


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    with world(tmp_path / "store", rig.env) as made:
        yield made


@pytest.fixture
def watching(rig: Rig) -> Watching:
    rig.repository.plugins.append(made := Watching())
    return made


def images(rig: Rig, here: World, count: int) -> list[str]:
    """So many images, a day apart."""
    made = []
    for _ in range(count):
        here.write(3, size=400)
        here.store.checkpoint()
        made.append(rig.repository.backup(here.source).image)
        rig.clock.time_us += DAY_US
    return made


LAST = Keep(points="none")


def test_what_was_done_and_what_failed_is_told(rig: Rig, here: World, watching: Watching, tmp_path: Path) -> None:
    repository = rig.repository
    here.write(3)
    expected = [("backup", repository.backup(here.source)),
                ("restore", repository.restore(tmp_path / "r", engine=here.engine)),
                ("verify", repository.verify()),
                ("rehearse", repository.rehearse(engine=here.engine)),
                ("expire", repository.expire(LAST))]
    assert watching.told == expected
    with pytest.raises(RestorePointOutOfRange) as caught:
        repository.restore(tmp_path / "never", to_txid=99, engine=here.engine)
    assert watching.told[-1] == ("restore", caught.value)
    told_before = len(watching.told)
    repository.expire(LAST, dry_run=True)
    assert len(watching.told) == told_before, "a dry run does nothing, so nothing is told"


def test_a_veto_keeps_everything(rig: Rig, here: World, watching: Watching) -> None:
    first, second, third = images(rig, here, 3)
    before = dict(rig.objects)
    watching.reason = "the auditors want it"
    for dry_run in (True, False):
        with pytest.raises(ExpiryVetoed, match=r"Watching does not want .* the auditors want it"):
            rig.repository.expire(LAST, dry_run=dry_run)
        assert watching.plans[-1].images == (first, second)
        assert (set(watching.plans[-1].kept), watching.plans[-1].dry_run) == ({third}, dry_run)
    assert rig.objects == before
    watching.reason = None
    asked = len(watching.plans)
    assert rig.repository.expire(LAST).images == (first, second)
    assert len(watching.plans) == asked + 1, "a plan that stays is asked about once"
    assert [image.id for image in rig.repository.info().images] == [third]


def test_a_plugin_that_fails_keeps_everything_too(rig: Rig, here: World, watching: Watching,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(plan: Expired) -> str | None:
        raise ValueError("no connection")

    images(rig, here, 2)
    before = dict(rig.objects)
    monkeypatch.setattr(watching, "expiring", fails)
    with pytest.raises(ExpiryVetoed, match=r"failed when it was asked .*no connection"):
        rig.repository.expire(LAST)
    assert rig.objects == before


def test_a_veto_also_comes_before_a_dead_run_is_given_up(rig: Rig, here: World, watching: Watching,
                                                         tmp_path: Path) -> None:
    """And when nobody objects, the plan is asked about once, although the catalog changes by what is given up."""
    images(rig, here, 1)
    rig.storage.fate = lambda what, name: "gone" if name.startswith("images/") else None
    here.write(1)
    with pytest.raises(HoldfastError):
        rig.repository.backup(here.source)
    rig.storage.fate = lambda what, name: None
    rig.clock.time_us += 2 * DAY_US
    watching.reason = "no"
    with pytest.raises(ExpiryVetoed):
        rig.repository.expire(LAST)
    assert len(rig.repository.info().running) == 1
    watching.reason = None
    asked = len(watching.plans)
    assert len(rig.repository.expire(LAST).aborted) == 1
    assert (rig.repository.info().running, len(watching.plans)) == ((), asked + 1)


def test_a_listener_that_fails_stops_nothing(rig: Rig, here: World, watching: Watching, monkeypatch: pytest.MonkeyPatch
                                             ) -> None:
    def fails(verb: str, report: Told) -> None:
        raise ValueError(verb)

    monkeypatch.setattr(watching, "done", fails)
    rig.repository.plugins.append(other := Watching())
    here.write(1)
    report = rig.repository.backup(here.source)
    assert other.told == [("backup", report)]


# --- what a mark costs --------------------------------------------------------------------------------------------


def test_what_a_mark_costs_is_what_goes_without_it(rig: Rig, here: World) -> None:
    """Its image, and the log between. A mark that is not kept costs nothing."""
    archiver = here.archiver(rig.repository)
    first = images(rig, here, 1)[0]
    for _ in range(70):
        here.write(1, size=400)
        archiver.step()
    marked = here.txid
    images(rig, here, 2)
    archiver.step()
    rig.repository.mark("loose", to_txid=marked - 1)
    rig.repository.mark("log too", to_txid=marked, keep=True)
    [(name, cost)] = rig.repository.expire(LAST, dry_run=True).marks.items()
    assert name == "log too"
    kept = rig.repository.expire(LAST)
    assert first in kept.kept
    assert kept.marks == {"log too": cost}
    assert "mark     log too: " in str(kept)
    stored = sum(len(data) for data, _ in rig.objects.values())
    rig.repository.unmark("log too")
    gone = rig.repository.expire(LAST)
    assert (gone.bytes, gone.images) == (cost, (first,))
    assert gone.log[-1][2] > marked - 32, "the log up to the mark, but for what no unit has"
    entries = sum(len(data) for name, (data, _) in rig.objects.items() if name.startswith("catalog/"))
    assert sum(len(data) for data, _ in rig.objects.values()) < stored - cost + entries


def test_marks_that_need_the_same_cost_nothing_alone(rig: Rig, here: World) -> None:
    images(rig, here, 2)
    for name in ("one", "two"):
        rig.repository.mark(name, to_txid=3, keep=True)
    assert rig.repository.expire(LAST, dry_run=True).marks == {"one": 0, "two": 0}
    rig.repository.unmark("one")
    assert rig.repository.expire(LAST, dry_run=True).marks["two"] > 0


# --- a program ----------------------------------------------------------------------------------------------------


def test_a_program_is_told_and_may_veto(store: Store[Any, Any], uri: str, tmp_path: Path) -> None:
    repo, heard = tmp_path / "repo", tmp_path / "heard"
    program = tmp_path / "program"
    program.write_text(f"""#!/bin/sh
echo "$1 $(cat)" >> {heard}
if [ "$1" = expiring ] && [ -e {tmp_path}/veto ]; then echo not on a Sunday; exit 1; fi
""")
    program.chmod(0o755)
    hook = ("--on-event", str(program))
    assert told("repo", "verify", repo, *hook, code=4)["error"] == "RepositoryMissing"
    holdfast("repo", "init", repo)
    holdfast("repo", "backup", uri, repo, *hook)
    holdfast("repo", "copy", repo, tmp_path / "copy", *hook)
    assert told("repo", "backup", "single://127.0.0.1:1", repo, *hook, code=3)["error"] == SourceUnavailable.__name__
    (tmp_path / "veto").touch()
    vetoed = told("repo", "expire", repo, *hook, code=4)
    assert (vetoed["error"], "not on a Sunday" in vetoed["message"]) == ("ExpiryVetoed", True)
    (tmp_path / "veto").unlink()
    holdfast("repo", "expire", repo, *hook)
    said = [(moment, json.loads(body)) for moment, _, body in (
        line.partition(" ") for line in heard.read_text().splitlines())]
    assert [(moment, body["verb"]) for moment, body in said] == [
        ("failed", "open"), ("done", "backup"), ("done", "copy"), ("failed", "backup"), ("expiring", "expire"),
        ("failed", "expire"), ("expiring", "expire"), ("done", "expire")]
    assert said[1][1]["report"]["to_txid"] == 10
    assert said[3][1]["error"] == SourceUnavailable.__name__
    assert "kept" in said[4][1]["plan"]
    assert told("repo", "expire", repo, "--on-event", str(tmp_path / "nowhere"), code=4)["error"] == "ExpiryVetoed"


