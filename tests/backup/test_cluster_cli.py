"""The commands of a cluster, as an operator types them: real processes on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HOLDFAST = (sys.executable, "-c", "from holdfast.backup.cli import main; main()")
PATIENCE = 40.0


def told(*args: object, code: int = 0) -> dict[str, Any]:
    """What a command says with --json."""
    done = subprocess.run([*HOLDFAST, *map(str, args), "--json"], capture_output=True, text=True, timeout=90)
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@contextmanager
def member(root: Path, name: str, *more: object) -> Iterator[dict[str, Any]]:
    """`holdfast serve` of a member, and what it says when it is there."""
    process = subprocess.Popen(
        [*HOLDFAST, "serve", str(root / f"{name}.db"), "--cluster", "social", "--member", name, "--listen",
         "127.0.0.1:0", "--coordinator", f"file:{root / 'co'}", "--engine", "memory", "--json", *map(str, more)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            assert process.stderr is not None
            pytest.fail(process.stderr.read())
        yield json.loads(line)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def asked(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.timeout(180)
def test_an_operators_day(tmp_path: Path) -> None:
    where = ("--coordinator", f"file:{tmp_path / 'co'}", "social")

    def status(code: int = 0) -> dict[str, Any]:
        return told("cluster", "status", *where, code=code)

    def roles() -> dict[str, str]:
        done = subprocess.run([*HOLDFAST, "cluster", "status", *where, "--json"], capture_output=True, text=True,
                              timeout=60)
        return {m["name"]: m["role"] for m in json.loads(done.stdout)["members"]} if done.stdout.strip() else {}

    assert told("cluster", "status", *where, code=3)["error"] == "NoCluster"
    with member(tmp_path, "a", "--create", "--ttl", 2) as a, member(tmp_path, "b") as b, member(tmp_path, "c") as c:
        until(lambda: sorted(roles().values()) == ["follower", "follower", "primary"])
        until(lambda: len([m for m in status()["members"] if m["voter"]]) == 3)
        table = subprocess.run([*HOLDFAST, "cluster", "status", *where], capture_output=True, text=True, timeout=60)
        assert table.stdout.startswith("cluster social, store ")
        assert len(table.stdout.splitlines()) == 5
        first = next(m["name"] for m in status()["members"] if m["role"] == "primary")
        to = "b" if first != "b" else "c"
        assert told("cluster", "switchover", *where, "--to", to) == {"primary": to}
        assert roles()[to] == "primary"
        assert told("cluster", "pause", *where) == {"paused": True}
        assert status()["paused"]
        assert told("cluster", "resume", *where) == {"paused": False}
        back = told("cluster", "failover", *where, "--to", first)
        assert back == {"primary": first, "not_asked": []}
        history = subprocess.run([*HOLDFAST, "cluster", "history", *where, "--json"], capture_output=True, text=True,
                                 timeout=60)
        changes = [json.loads(line) for line in history.stdout.splitlines()]
        assert [change["leader"] for change in changes] == ["a", to, first]
        assert changes[-1]["reason"] == "an operator asked for it"
        addresses = [each["address"] for each in (a, b, c)]
        report = told("backup", f"ha://{','.join(addresses)}", tmp_path / "target")
        assert report["kind"] == "full"
        assert told("backup", f"ha://{','.join(addresses)}", tmp_path / "target")["kind"] == "incremental"
        at = {m["name"]: m["address"] for m in status()["members"]}
        assert asked(at[first], "/primary")[0] == 200
        assert asked(at[first], "/read-write")[0] == 200
        assert asked(at[first], "/replica")[0] == 503
        follower = next(name for name in at if name != first)
        until(lambda: asked(at[follower], "/replica?lag=5")[0] == 200)
        assert asked(at[follower], "/primary")[0] == 503
        assert asked(at[follower], "/health")[0] == 200
        code, page = asked(at[follower], "/ha")
        assert code == 200
        assert "Holdfast cluster social" in page
        assert "an operator asked for it" in page
        assert told("cluster", "reinit", *where, first, code=2)["error"] == "InvalidInput"
        assert told("cluster", "reinit", *where, follower) == {"seeding": follower}
        until(lambda: roles()[follower] == "follower")
        assert told("cluster", "remove", *where, follower) == {"leaving": follower}
        until(lambda: follower not in roles())
        assert told("cluster", "switchover", *where, "--to", "nobody", code=2)["error"] == "InvalidInput"


@pytest.mark.timeout(120)
def test_members_archive_and_the_next_primary_goes_on(tmp_path: Path) -> None:
    where, repo = ("--coordinator", f"file:{tmp_path / 'co'}", "social"), tmp_path / "repo"
    archives = ("--archive", repo, "--archive-interval", 0.1, "--archive-idle", 0.1)
    told("repo", "init", repo)
    writers: set[str] = set()

    def archived() -> dict[str, Any]:
        [branch] = told("repo", "info", repo)["branches"]
        writers.update(path.name for path in (repo / "writers").rglob("*") if path.is_file())
        found: dict[str, Any] = branch
        return found

    with member(tmp_path, "a", "--create", "--ttl", 2, *archives) as a, member(tmp_path, "b", *archives) as b:
        addresses = f"{a['address']},{b['address']}"
        until(lambda: sum(m["voter"] for m in told("cluster", "status", *where)["members"]) == 2)
        told("repo", "backup", f"ha://{addresses}", repo)
        until(lambda: archived()["archived_to"] >= 1)
        before = archived()["archived_to"]
        told("cluster", "switchover", *where, "--to", "b")
        until(lambda: archived()["archived_to"] > before)  # the first record of b's epoch
        assert len(writers) == 2
        assert len(archived()["restores_to"]) == 1
        slot = told("slots", "list", f"ha://{addresses}")
        assert slot["name"].startswith("archive in ")


def test_options_of_an_archive_that_a_member_does_not_have_are_refused(tmp_path: Path) -> None:
    serve = ("serve", tmp_path / "a.db", "--cluster", "social", "--member", "a", "--listen", "127.0.0.1:0",
             "--coordinator", f"file:{tmp_path / 'co'}", "--engine", "memory")
    for more in (("--archive-keep", "1 GiB"), ("--archive-overrun", "hold"), ("--archive-gate",)):
        assert "single store" in told(*serve, "--archive", tmp_path / "repo", *more, code=2)["message"]
    assert "need --archive" in told(*serve, "--archive-ack", code=2)["message"]
    assert told(*serve, "--create", "--archive", tmp_path / "none", code=4)["error"] == "RepositoryMissing"


@pytest.mark.timeout(120)
def test_the_demo_runs_and_finds_everything() -> None:
    done = told("cluster", "demo")
    assert done["acknowledged"] == 250
    assert done["summary"].startswith("Every comparison held")


def test_a_member_needs_its_options(tmp_path: Path) -> None:
    refused = told("serve", tmp_path / "a.db", "--cluster", "social", "--member", "a", code=2)
    assert "--cluster needs --member, --listen and --coordinator" in refused["message"]
    wrong = told("serve", tmp_path / "a.db", "--cluster", "so/cial", "--member", "a", "--listen", "127.0.0.1:0",
                 "--coordinator", f"file:{tmp_path / 'co'}", "--engine", "memory", code=2)
    assert "is not a" in wrong["message"]
    far = told("serve", tmp_path / "a.db", "--cluster", "social", "--member", "a", "--listen", "0.0.0.0:0",
               "--coordinator", f"file:{tmp_path / 'co'}", "--engine", "memory", code=2)
    assert "needs TLS" in far["message"]
