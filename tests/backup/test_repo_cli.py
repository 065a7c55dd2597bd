"""The commands of a repository, in words and in JSON, and `serve --archive` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backup_worlds import digest, digest_at, write
from cli_rig import COMMAND, holdfast, told

from holdfast.backup import Repository
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.source.http.client import connect
from holdfast.engine.store.store import Store


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return tmp_path / "repo"


def test_the_whole_way(store: Store[Any, Any], uri: str, repo: Path, tmp_path: Path) -> None:
    made = holdfast("repo", "init", repo).stdout
    assert "is a repository now" in made
    assert "can overwrite and delete what is there: they are not append-only" in made
    assert "nothing was backed up" in holdfast("repo", "info", repo).stdout
    assert "would read" in holdfast("repo", "backup", uri, repo, "--dry-run").stdout
    assert told("repo", "info", repo)["store_id"] == "", "a dry run adds nothing"
    assert "nothing to compare with" in holdfast("repo", "backup", uri, repo).stdout
    write(store, 2, 5)
    plan = told("repo", "backup", uri, repo, "--dry-run")
    report = told("repo", "backup", uri, repo)
    assert (plan["base"], plan["rights"]["append_only"]) == (report["base"], False)
    assert (report["to_txid"], bool(report["base"])) == (15, True)
    write(store, 3, 5)
    assert "to transaction 20" in holdfast("repo", "archive", uri, repo, "--once").stdout
    assert told("repo", "info", repo)["rights"] is None
    info = told("repo", "info", repo, "--rights")
    assert info["rights"] == {"append_only": False, "overwrite": True, "delete": True}
    [branch] = info["branches"]
    assert [(b["first"], b["last"]) for b in branch["restores_to"]] == [(10, 20)]
    assert branch["archived_to"] == 20
    assert told("repo", "mark", repo, "here", "--txid", "12", "--keep")["txid"] == 12
    assert "marked transaction 20" in holdfast("repo", "mark", repo, "there").stdout
    holdfast("repo", "mark", repo, "here", code=2)
    assert "removed" in holdfast("repo", "mark", repo, "there", "--remove").stdout
    plan = told("repo", "restore", repo, tmp_path / "r", "--mark", "here", "--dry-run")
    assert (plan["txid"], (tmp_path / "r").exists()) == (12, False)
    assert "restored" in holdfast("repo", "restore", repo, tmp_path / "r").stdout
    assert digest_at(tmp_path / "r", MemoryEngine) == digest(store)
    holdfast("repo", "restore", repo, tmp_path / "r", code=4)
    assert told("repo", "restore", repo, tmp_path / "r", "--txid", "13", "--force")["txid"] == 13
    future = told("repo", "restore", repo, tmp_path / "f", "--at", "2999-01-01T00:00:00Z", code=4)
    assert (future["error"], "after the end" in future["message"]) == ("RestorePointOutOfRange", True)
    assert told("repo", "rehearse", repo)["digest"] == digest(store).hex()
    assert "is whole" in holdfast("repo", "verify", repo, "--sample", "50%").stdout
    assert "rehearsed" in holdfast("repo", "info", repo).stdout
    assert "would be deleted" in holdfast("repo", "expire", repo, "--dry-run").stdout
    assert told("repo", "expire", repo, "--keep-last", "1")["dry_run"] is False
    assert "objects copied" in holdfast("repo", "copy", repo, tmp_path / "copy").stdout
    assert "is a copy of" in holdfast("repo", "mark", tmp_path / "copy", "x", code=4).stderr
    assert "of its own now" in holdfast("repo", "promote", tmp_path / "copy").stdout
    assert any("catalog/" in line for line in holdfast("repo", "ls", repo).stdout.splitlines())


def test_a_key_is_asked_for_and_never_ignored(uri: str, repo: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("a key of sixteen bytes\n")
    (tmp_path / "new").write_text("another key of sixteen bytes\n")
    (tmp_path / "short").write_text("short\n")
    holdfast("repo", "init", repo, "--encrypt", tmp_path / "short", code=2)
    made = told("repo", "init", repo, "--encrypt", tmp_path / "key")
    assert (made["encrypted"], made["rights"]["overwrite"]) == (True, True)
    assert told("repo", "backup", uri, repo, code=4)["error"] == "KeyMissing"
    assert told("repo", "backup", uri, repo, "--key-file", tmp_path / "new", code=4)["error"] == "KeyWrong"
    holdfast("repo", "backup", uri, repo, "--key-file", tmp_path / "key")
    holdfast("repo", "rotate", repo, "--key-file", tmp_path / "key", "--new-key-file", tmp_path / "new")
    assert told("repo", "info", repo, "--key-file", tmp_path / "key", code=4)["error"] == "KeyWrong"
    monkeypatch.setenv("HOLDFAST_REPOSITORY_KEY_COMMAND", f"cat {tmp_path / 'new'}")
    holdfast("repo", "rehearse", repo)
    monkeypatch.setenv("HOLDFAST_REPOSITORY_KEY_COMMAND", "false")
    assert told("repo", "info", repo, code=2)["error"] == "SettingError"
    monkeypatch.setenv("HOLDFAST_REPOSITORY_KEY", "another key of sixteen bytes")
    holdfast("repo", "info", repo)
    holdfast("repo", "init", tmp_path / "plain")
    assert told("repo", "info", tmp_path / "plain", code=4)["error"] == "KeyNeedless"


def test_exit_codes(store: Store[Any, Any], uri: str, repo: Path, tmp_path: Path) -> None:
    holdfast("repo", "init", repo)
    holdfast("repo", "backup", uri, repo)
    for arguments, code, name in [
        (("init", repo), 4, "RepositoryExists"),
        (("info", tmp_path / "nowhere"), 4, "RepositoryMissing"),
        (("backup", "single://127.0.0.1:1", repo, "--timeout", "1"), 3, "SourceUnavailable"),
        (("backup", uri, repo, "--block-bytes", "5000"), 2, "InvalidInput"),
        (("backup", uri, repo, "--rate", "-1"), 2, "InvalidInput"),
        (("mark", repo, "x", "--txid", "99"), 4, "RestorePointOutOfRange"),
        (("mark", repo, "x", "--remove"), 4, "NotFound"),
        (("restore", repo, tmp_path / "r", "--mark", "x"), 4, "NotFound"),
        (("restore", repo, tmp_path / "r", "--branch", "ffff"), 4, "NotFound"),
        (("restore", repo, tmp_path / "r", "--txid", "1", "--at", "2026-01-01T00:00:00Z"), 2, "InvalidInput"),
        (("restore", repo, tmp_path / "r", "--at", "2026-01-01"), 2, "InvalidInput"),
        (("expire", repo, "--keep-daily", "-1"), 2, "SettingError"),
        (("expire", repo, "--keep-points", "some"), 2, "SettingError"),
        (("verify", repo, "--sample", "0"), 2, "InvalidInput"),
        (("verify", repo, "--sample", "much"), 2, "InvalidInput"),
        (("copy", repo, repo), 2, "InvalidInput"),
        (("rotate", repo, "--new-key-file", tmp_path / "nowhere"), 2, "SettingError"),
        (("info", "ftp://somewhere/x"), 2, "InvalidInput"),
    ]:
        found = told("repo", *arguments, code=code)
        assert (found["error"], bool(found["message"])) == (name, True), arguments
    pack = next(iter((repo / "packs").rglob("0000000001")))
    damaged = bytearray(pack.read_bytes())
    damaged[100] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(damaged)
    report = told("repo", "verify", repo, code=5)
    assert len(report["damaged"]) >= 1
    assert str(pack.relative_to(repo)) in report["damaged"][0]
    assert report["lost"] == [{"branch": store.history.branch.id.hex(), "first": 10, "last": 10}]
    assert told("repo", "rehearse", repo, code=5)["error"] == "Damaged"


@pytest.fixture
def served(repo: Path, runtime: None, tmp_path: Path) -> Iterator[Any]:
    running: list[subprocess.Popen[str]] = []

    def serve(directory: str, *more: str) -> dict[str, Any]:
        process = subprocess.Popen(
            [*COMMAND, "serve", str(tmp_path / directory), "--listen", "127.0.0.1:0",
             "--archive", str(repo), "--archive-interval", "0.05", "--json", *more],
            stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        running.append(process)
        assert process.stdout is not None
        return dict(json.loads(process.stdout.readline()))

    serve.running = running  # type: ignore[attr-defined]
    yield serve
    for process in running:
        process.kill()
        process.communicate()


def test_a_served_store_is_archived_and_its_twin_is_refused(repo: Path, served: Any, tmp_path: Path) -> None:
    holdfast("repo", "init", repo)
    with Store.open(tmp_path / "store", MemoryEngine, create=True) as store:
        write(store, 1, 5)
    ready = served("store")
    holdfast("repo", "backup", ready["backup_uri"], repo)
    os.kill(served.running[0].pid, signal.SIGKILL)
    served.running[0].wait()
    with Store.open(tmp_path / "store", MemoryEngine) as store:
        write(store, 2, 5)
    served("store")
    with Repository.open(repo) as repository:
        deadline = time.monotonic() + 20
        while repository.info().branches[0].archived_to != 10:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert told("repo", "restore", repo, tmp_path / "twin", "--txid", "7")["txid"] == 7
    refused = served("twin")
    assert refused["error"] == "OtherBranch"
    assert "--accept-branch" in refused["hint"]
    accepted = refused["hint"].rsplit("--accept-branch ", 1)[1].split()[0]
    twin = served("twin", "--accept-branch", accepted)
    host, port = twin["backup_uri"].removeprefix("single://").rsplit(":", 1)
    with connect(host, int(port)) as source:
        assert source.info().published.txid == 7
    assert len(told("repo", "info", repo)["branches"]) == 2
