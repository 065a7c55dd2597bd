"""The command line: each command in words and in JSON, its exit codes, and `serve` as a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from backup_worlds import digest, digest_at, open_store, write
from cli_rig import COMMAND, holdfast, told

from holdfast import backup
from holdfast.backup import terminal
from holdfast.backup.repository.copying import CopyReport
from holdfast.backup.repository.reports import (
    BackupPlan,
    Expired,
    ImageReport,
    Rehearsal,
    RepositoryInfo,
    RepositoryVerified,
    RestorePlan,
)
from holdfast.engine import GraphStore, errors
from holdfast.engine.builtin.memory import MemoryEngine, MemoryView
from holdfast.engine.store.store import Store


def test_the_whole_way(store: Store[Any, Any], uri: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert "full backup" in holdfast("backup", uri, target).stdout
    write(store, 2, 5)
    report = told("backup", uri, target)
    assert (report["kind"], report["from_txid"], report["to_txid"]) == ("incremental", 10, 15)
    assert datetime.fromisoformat(report["ended"]).tzinfo is not None
    assert "is whole" in holdfast("verify", target).stdout
    assert told("verify", target)["digest"] == digest(store).hex()
    info = told("info", target)
    assert (info["kind"], info["bounds"]["first"], info["bounds"]["last"]) == ("backup", 10, 15)
    assert [r["kind"] for r in info["runs"]] == ["full", "incremental"]
    assert "is a backup" in holdfast("info", target).stdout
    assert "is a store" in holdfast("info", tmp_path / "store").stdout
    lines = [json.loads(line) for line in holdfast("log", target, "--from", "12", "--json").stdout.splitlines()]
    assert [line["txid"] for line in lines] == [12, 13, 14, 15]
    assert lines[-1]["chain"] == store.published.chain.hex()
    assert len(holdfast("log", target, "--to", "12").stdout.splitlines()) == 2
    assert "restored" in holdfast("restore", target, tmp_path / "r1", "--txid", "12").stdout
    at = told("restore", target, tmp_path / "r2", "--at", lines[2]["time"])
    assert at["txid"] >= 14
    assert backup.info(tmp_path / "r2").bounds.last == at["txid"]
    holdfast("restore", target, tmp_path / "r1", code=4)
    holdfast("restore", target, tmp_path / "r1", "--force")
    assert digest_at(tmp_path / "r1", MemoryEngine) == digest(store)


def test_exit_codes(store: Store[Any, Any], uri: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    holdfast("backup", uri, target)
    (tmp_path / "photos").mkdir()
    cat = tmp_path / "photos" / "cat.jpg"
    cat.touch()
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong-but-long-enough")
    for arguments, code, name in [
        (("backup", uri, tmp_path / "new", "--incremental-only"), 4, "TargetInvalid"),
        (("backup", "single://127.0.0.1:1", target, "--timeout", "1"), 3, "SourceUnavailable"),
        (("backup", "ha://a,b", target), 3, "ClusterUnavailable"),
        (("backup", "localhost", target), 2, "InvalidInput"),
        (("backup", uri, tmp_path / "photos"), 4, "TargetInvalid"),
        (("backup", uri, target, "--expect-store", "0" * 8), 4, "ForeignStore"),
        (("backup", uri, target, "--token-file", wrong), 4, "NotAuthorized"),
        (("restore", target, tmp_path / "r", "--txid", "99"), 4, "RestorePointOutOfRange"),
        (("restore", target, tmp_path / "r", "--at", "2026-01-01T00:00:00"), 2, "InvalidInput"),
        (("restore", target, tmp_path / "r", "--at", "yesterday"), 2, "InvalidInput"),
        (("verify", tmp_path / "nowhere"), 4, "TargetInvalid"),
        (("verify", cat), 4, "TargetInvalid"),
        (("restore", cat, tmp_path / "r"), 4, "TargetInvalid"),
        (("backup", uri, cat), 4, "TargetInvalid"),
        (("info", cat), 4, "StoreNotFound"),
        (("info", tmp_path / "nowhere"), 4, "StoreNotFound"),
        (("log", target, "--from", "1", "--to", "5"), 4, "RestorePointOutOfRange"),
        (("serve", tmp_path / "nowhere"), 4, "StoreNotFound"),
        (("serve", tmp_path / "nowhere", "--engine", "memory"), 4, "StoreNotFound"),
        (("serve", target), 4, "StoreNotFound"),
        (("serve", tmp_path / "nowhere", "--create"), 2, "InvalidInput"),
        (("serve", tmp_path / "nowhere", "--create", "--engine", "nonsense"), 2, "SettingError"),
        (("serve", tmp_path / "nowhere", "--create", "--engine", "graph", "--engine-option", "no=1"), 2,
         "InvalidInput"),
        (("serve", tmp_path / "nowhere", "--create", "--engine", "memory", "--listen", uri.removeprefix("single://")),
         2, "SettingError"),
    ]:
        error = told(*arguments, code=code)
        assert error["error"] == name
        assert error["message"]
        assert error["hint"]
        shown = holdfast(*arguments, code=code)
        assert error["message"] in shown.stderr
        assert shown.stdout == ""
    assert backup.info(target).kind == "backup", "nothing was changed"
    assert not (tmp_path / "nowhere").exists(), "nothing was made"


def test_a_log_without_transactions_is_told_as_such(tmp_path: Path) -> None:
    Store.open(tmp_path / "store", MemoryEngine).close()
    assert "log      no transaction\n" in holdfast("info", tmp_path / "store").stdout
    assert "holds none" in told("log", tmp_path / "store", "--to", "1", code=4)["message"]


def test_wrong_usage_is_told_as_json_too() -> None:
    for arguments, what in [(["backup", "single://127.0.0.1"], "TARGET"), (["nonsense"], "nonsense"),
                            (["backup", "single://127.0.0.1", "t", "--timeout", "soon"], "--timeout")]:
        error = told(*arguments, code=2)
        assert error["error"] == "InvalidInput"
        assert what in error["message"]
        assert "--help" in error["hint"]
        shown = holdfast(*arguments, code=2)
        assert what in shown.stderr
        assert shown.stdout == ""


def test_damage_and_inconsistency_are_never_zero(store: Store[Any, Any], uri: str, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    holdfast("backup", uri, target)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryView, "check", lambda self: iter(("this", "that")))
        assert told("verify", target, code=5)["findings"] == ["this", "that"]
        assert "that" in holdfast("verify", target, code=5).stderr
        assert told("backup", uri, tmp_path / "second", code=5)["error"] == "Inconsistent"
    state = next(target.glob("gen-*/state/*"))
    data = bytearray(state.read_bytes())
    data[30] ^= 1
    state.write_bytes(data)
    assert told("verify", target, code=5)["error"] == "Damaged"
    assert str(state) in holdfast("restore", target, tmp_path / "r", code=5).stderr


@pytest.mark.parametrize(("gone", "code", "name", "why"), [
    ("STORE", 5, "Damaged", "STORE: is missing"), ("CURRENT", 4, "TargetInvalid", "CURRENT is gone"),
    ("gen-000001/MANIFEST", 4, "TargetInvalid", "gen-000001 has no MANIFEST")])
def test_a_backup_that_lost_a_document(gone: str, code: int, name: str, why: str, uri: str, tmp_path: Path) -> None:
    """Which is damage? CURRENT comes last, so a backup without it was never finished; and a store has no MANIFEST."""
    target = tmp_path / "target"
    holdfast("backup", uri, target)
    (target / gone).unlink()
    for error in (told("verify", target, code=code), told("restore", target, tmp_path / "restored", code=code)):
        assert error["error"] == name
        assert why in f"{error['message']}, {error['hint']}"


def test_help_documents_the_exit_codes() -> None:
    shown = " ".join(holdfast("--help").stdout.replace("│", " ").split())
    for code, text, _ in (*terminal.EXIT_CODES, (130, "interrupted", ())):
        assert f"{code} {text}" in shown
    for command in ("backup", "restore", "verify", "info", "log", "serve"):
        assert "--json" in holdfast(command, "--help").stdout


def test_every_error_has_an_exit_code_that_is_not_zero() -> None:
    def kinds(kind: type[Exception]) -> Iterator[type[Exception]]:
        yield kind
        for below in kind.__subclasses__():
            yield from kinds(below)

    codes = {kind.__name__: next(c for c, _, k in terminal.EXIT_CODES if issubclass(kind, k))
             for kind in kinds(errors.HoldfastError)}
    assert 0 not in codes.values()
    assert codes["DiskFull"] == 6
    assert codes["Inconsistent"] == codes["Damaged"] == 5
    assert codes["SourceRestarted"] == codes["SourceUnavailable"] == codes["LeaseExpired"] == 3
    assert codes["ForeignStore"] == codes["NotAuthorized"] == codes["RestorePointOutOfRange"] == 4
    assert codes["InvalidInput"] == codes["SettingError"] == 2


@contextlib.contextmanager
def serving(directory: Path, *options: str | Path, listen: str = ":0",
            number: signal.Signals = signal.SIGTERM) -> Iterator[dict[str, Any]]:
    """What a `serve` process says when it is ready. In the end it is told to stop, and must do so in order."""
    served = subprocess.Popen([*COMMAND, "serve", directory, *options, "--listen", listen, "--json"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert served.stdout is not None
        yield json.loads(served.stdout.readline())
        served.send_signal(number)
        _, complaints = served.communicate(timeout=60)
        assert served.returncode == 0, complaints
        assert complaints == ""
    finally:
        served.kill()
        served.communicate()


@pytest.mark.usefixtures("runtime")
def test_serve_makes_a_store_or_takes_a_backup_over_when_told_to(tmp_path: Path) -> None:
    with serving(tmp_path / "store", "--create", "--engine", "memory") as ready:
        assert ready["engine"] == "memory"
        told("backup", ready["backup_uri"], tmp_path / "target")
    with serving(tmp_path / "target", "--promote"):
        assert backup.info(tmp_path / "target").kind == "promoted backup"
    with serving(tmp_path / "target") as ready:
        assert ready["engine"] == "memory", "it is a store like any other now"


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_is_backed_up_and_stops_when_told(tmp_path: Path, number: signal.Signals) -> None:
    with open_store(tmp_path / "store") as store:
        write(store, 1, 5)
        expected = digest(store)
    with serving(tmp_path / "store", number=number) as ready:
        assert ready["engine"] == "memory"
        taken = subprocess.run([*COMMAND, "backup", ready["backup_uri"], str(tmp_path / "target"), "--json"],
                               capture_output=True, text=True, check=False)
        assert taken.returncode == 0, taken.stderr
        assert json.loads(taken.stdout)["to_txid"] == 5
    assert digest_at(tmp_path / "target", MemoryEngine) == expected
    assert backup.info(tmp_path / "store").log_clean, "it was closed in order"


@pytest.mark.usefixtures("runtime")
def test_paths_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's name is bytes, and these are not UTF-8."""
    place = os.fsencode(tmp_path) + b"/\xff"
    store, target, restored = (Path(os.fsdecode(place + end)) for end in (b"store", b"target", b"restored"))
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    with open_store(store) as made:
        write(made, 1, 5)
    with serving(store) as ready:
        for arguments in (["backup", ready["backup_uri"], target], ["info", target], ["verify", target],
                          ["restore", target, restored], ["info", store]):
            done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False,
                                  errors="replace")
            assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("runtime")
def test_serve_off_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TLS and a credential; or without, and then the client has to say so, too."""
    token = "a token of my own".replace(" ", "-")
    with open_store(tmp_path / "store") as store:
        write(store, 1, 5)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("0.0.0.0").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    (tmp_path / "token").write_text(f"{token}\n")
    assert "TLS" in told("serve", tmp_path / "store", "--listen", "0.0.0.0:0", code=2)["message"]
    missing = told("serve", tmp_path / "store", "--token-file", tmp_path / "none", code=2)
    assert "no token can be read" in missing["message"]
    monkeypatch.setenv("HOLDFAST_TOKEN", token)
    safe = ["--tls-certificate", tmp_path / "server.pem", "--token-file", tmp_path / "token"]
    for served_with, asked_with, refused_with in ((safe, ["--ca", tmp_path / "ca.pem"], ["--no-tls"]),
                                                  (["--insecure"], ["--no-tls"], [])):
        with serving(tmp_path / "store", *served_with, listen="0.0.0.0:0") as ready:
            uri = f"single://0.0.0.0:{ready['backup_uri'].rpartition(':')[2]}"
            assert told("backup", uri, tmp_path / "target", *asked_with)["to_txid"] == 5
            refusal = told("backup", uri, tmp_path / "target", *refused_with, code=3)
            assert refused_with or "--no-tls" in refusal["hint"]


def test_without_its_extra_the_command_shows_lines_in_place_of_bars(monkeypatch: pytest.MonkeyPatch,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(terminal, "PROGRESS_S", 0.0)
    monkeypatch.setattr(terminal, "BARS_S", 0.0)
    with terminal.progress_told(False) as progress:
        progress("copy", 1, 2)
    assert capsys.readouterr().err == "holdfast: copy: 1 bytes of 2 bytes\n"


def test_the_pages_and_the_program_agree() -> None:
    docs = Path(__file__).parents[2] / "docs"
    codes = re.findall(r"^\| (\d+) \|", (docs / "backup.md").read_text(), re.MULTILINE)
    assert {int(code) for code in codes} == {0, terminal.POINTS_LOST, terminal.BRANCHED, terminal.INTERRUPTED,
                                              *(code for code, _, _ in terminal.EXIT_CODES)}
    listed = " ".join((docs / "json.md").read_text().split())
    of_repositories = (ImageReport, BackupPlan, RepositoryInfo, RestorePlan, Rehearsal, RepositoryVerified, Expired,
                       CopyReport)
    for report in (backup.Report, backup.RestoreReport, backup.VerifyReport, backup.Info, *of_repositories):
        names = ", ".join(f.name.removesuffix("_us") for f in dataclasses.fields(report))
        assert f"`{report.__name__}`: {names} - `" in listed
    assert "`bounds` is: " + ", ".join(f.name.removesuffix("_us") for f in dataclasses.fields(backup.Bounds)) in listed


def test_engine_options_reach_the_engine(tmp_path: Path) -> None:
    """An engine that needs an option to be opened with cannot be verified or restored without it."""
    with GraphStore.open(tmp_path / "store", online_backup_enabled=False, options={"map_size": 1 << 30}) as store:
        with store.transaction() as tx:
            tx.add_node("N")
        backup.run(store, tmp_path / "target")
    target = str(tmp_path / "target")
    for command in (["verify", target], ["restore", target, str(tmp_path / "restored")]):
        assert "colour" in holdfast(*command, "--engine-option", "colour=red", code=2).output
        holdfast(*command, "--engine-option", "map_size=2147483648", "--engine-option", "cache_bytes=0")
    holdfast("verify", target, "--engine-option", "map_size", code=2)
