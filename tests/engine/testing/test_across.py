"""What one process wrote, read by others; and states that earlier versions of an engine wrote."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
from workloads import KEPT, WORKLOADS, keyed
from zoo_across import HashedDigest

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.errors import SettingError, UpgradeRequired
from holdfast.engine.testing import KeyValues, Workload, keep
from holdfast.engine.testing.__main__ import main
from holdfast.engine.testing.engine.across import AcrossChecks
from holdfast.engine.testing.support.kept import as_text, kept_in
from holdfast.engine.testing.support.not_tried import untried

OTHERS, EARLIER = "test_other_processes_read_and_write_the_same", "test_what_earlier_versions_wrote_opens"


@pytest.fixture(autouse=True)
def _nothing_noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HOLDFAST_PYTHONS", raising=False)
    untried()
    yield
    untried()


def checks(make: Callable[[], Workload]) -> AcrossChecks:
    suite: AcrossChecks = type("Suite", (AcrossChecks,), {"workload": staticmethod(make), "quiet": True})()
    return suite


# --- other processes -------------------------------------------------------------------------------------------------


def hashed() -> Workload:
    return keyed(HashedDigest)


def test_a_digest_of_hashes_is_told_with_the_reason() -> None:
    with pytest.raises(AssertionError, match=r"in this process, and .* in a process with PYTHONHASHSEED=1 .*, although "
                                             "both show the same content: a digest must not come from hash"):
        getattr(checks(hashed), OTHERS)()


class Elsewhere(MemoryEngine):
    """In other processes it does not open what is there."""

    @classmethod
    def open(cls, *arguments: Any, **how: Any) -> Any:
        engine = super().open(*arguments, **how)
        if "HOLDFAST_WITHIN_CHILD" in os.environ:
            engine._state.clear()
        return engine


def elsewhere() -> Workload:
    return keyed(Elsewhere)


def test_what_another_process_finds_is_told_with_which() -> None:
    with pytest.raises(AssertionError, match=r"in a process with PYTHONHASHSEED=1 .*, which opened what this process "
                                             "wrote: at transaction 16 it differs from the model"):
        getattr(checks(elsewhere), OTHERS)()


def test_other_pythons_take_part_if_they_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    getattr(checks(WORKLOADS["memory"]), OTHERS)()
    assert "other versions of Python" in [noted.what for noted in untried()]
    monkeypatch.setenv("HOLDFAST_PYTHONS", sys.executable)
    with pytest.raises(AssertionError, match=f"in this process, and .* in Python 3.* at {sys.executable}"):
        suite = checks(hashed)
        suite.elsewhere = ()  # type: ignore[misc]  # so that it is the only other process
        getattr(suite, OTHERS)()
    assert "other versions of Python" not in [noted.what for noted in untried()]
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setenv("HOLDFAST_PYTHONS", str(bare))
    with pytest.raises(SettingError, match=r"(?s)another process does not start: .*ModuleNotFoundError"):
        getattr(checks(WORKLOADS["memory"]), OTHERS)()
    monkeypatch.setenv("HOLDFAST_PYTHONS", "/nowhere/python")
    with pytest.raises(SettingError, match="HOLDFAST_PYTHONS names '/nowhere/python', which cannot be run"):
        getattr(checks(WORKLOADS["memory"]), OTHERS)()


# --- earlier versions ------------------------------------------------------------------------------------------------


def of(engine: type[MemoryEngine], kept: Path) -> Callable[[], Workload]:
    return lambda: keyed(engine, kept=kept)


def test_a_workload_without_kept_states_says_how_to_make_one() -> None:
    with pytest.raises(SkipTest, match="has no kept="):
        getattr(checks(lambda: keyed(MemoryEngine)), EARLIER)()
    (noted,) = (noted for noted in untried() if noted.what == "stores that earlier versions wrote")
    assert "python -m holdfast.engine.testing keep" in noted.why


def test_a_directory_without_kept_states_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="there is nothing"):
        getattr(checks(of(MemoryEngine, tmp_path)), EARLIER)()


class Next(MemoryEngine):
    """The version after the next format."""

    state_format = 2


def test_a_kept_state_opens_or_wants_an_upgrade(tmp_path: Path) -> None:
    assert keep(keyed(MemoryEngine), tmp_path) == tmp_path / "1.1"
    getattr(checks(of(MemoryEngine, tmp_path)), EARLIER)()
    assert "a store of today's formats, for later versions" not in [noted.what for noted in untried()]
    getattr(checks(of(Next, tmp_path)), EARLIER)()
    assert "a store of today's formats, for later versions" in [noted.what for noted in untried()]
    with pytest.raises(SettingError, match="a kept state stays as it is"):
        keep(keyed(MemoryEngine), tmp_path)


def _altered(tmp_path: Path, **changes: Any) -> Callable[[], Workload]:
    place = keep(keyed(MemoryEngine), tmp_path)
    (kept,) = kept_in(tmp_path).values()
    (place / "kept.json").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(kept, **changes))))
    return of(MemoryEngine, tmp_path)


@pytest.mark.parametrize(("changes", "said"), [
    ({"content": ["(b'k', b'v')"]}, r"shows something else than when it was kept: not \[\"\(b'k', b'v'\)\"\], but"),
    ({"numbers": [999]}, r"what numbered\(999\) had added is not there"),
    ({"digest": "00" * 16}, "its digest is .*, and was 0000"),
])
def test_what_a_kept_state_shows_is_compared(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=said) as caught:
        getattr(checks(_altered(tmp_path, **changes)), EARLIER)()
    assert f"this is the kept store {tmp_path / '1.1'}" in caught.value.__notes__


class Refusing(MemoryEngine):
    @classmethod
    def open(cls, *arguments: Any, **how: Any) -> Any:
        raise UpgradeRequired("of yesterday")


def test_it_is_refused_only_if_it_is_older(tmp_path: Path) -> None:
    keep(keyed(MemoryEngine), tmp_path)
    with pytest.raises(AssertionError, match="refused with UpgradeRequired, and its formats are the engine's own"):
        getattr(checks(of(Refusing, tmp_path)), EARLIER)()


def test_a_kept_state_that_is_not_whole_is_told(tmp_path: Path) -> None:
    place = keep(keyed(MemoryEngine), tmp_path)
    (place / "store.zip").unlink()
    with pytest.raises(SettingError, match=r"has no store\.zip"):
        kept_in(tmp_path)
    (place / "kept.json").write_text("{}")
    with pytest.raises(SettingError, match="is not what `keep` writes"):
        kept_in(tmp_path)


def test_every_engine_of_the_kit_has_a_kept_state_of_its_formats() -> None:
    for name, make in WORKLOADS.items():
        work = make()
        formats = {(kept.state_format, kept.payload_version) for kept in kept_in(KEPT / name).values()}
        assert (work.engine.state_format, work.engine.payload_version) in formats, name


def test_contents_as_text() -> None:
    """Equal ones have the same, whatever order they were made in."""
    one: Any = {b"a": {1, 2, 3}, b"b": {"x": (1, [2]), "y": None}}
    other: Any = {b"b": {"y": None, "x": (1, [2])}, b"a": {3, 2, 1}}
    assert as_text(one) == as_text(other) == ["(b'a', {1, 2, 3})", "(b'b', {'x': (1, (2)), 'y': None})"]
    assert as_text({1: object()}) == []


def test_the_command_keeps_a_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView\n"
        "from holdfast.engine.testing import EngineContract, KeyValues\n"
        "class TestMine(EngineContract):\n"
        "    workload = KeyValues(MemoryEngine, put=MemoryTransaction.put, items=MemoryView.items)\n"
        "def work():\n"
        "    return TestMine.workload\n")
    for name, asked in (("TestMine", "first"), ("work", "second"), ("TestMine.workload", "third")):
        done = subprocess.run([sys.executable, "-m", "holdfast.engine.testing", "keep", f"test_mine:{name}", "kept",
                               "--name", asked], cwd=tmp_path, text=True, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"kept in kept/{asked}\n", "")
    assert len(kept_in(tmp_path / "kept")) == 3
    assert main(["keep", "nowhere:Mine", str(tmp_path)]) == 1
    assert "there is no 'nowhere:Mine'" in capsys.readouterr().err
    assert main(["keep", "os:getpid", str(tmp_path)]) == 1
    assert "gives a int, and not a workload" in capsys.readouterr().err


def test_kept_states_are_given_with_the_workload() -> None:
    work = KeyValues(MemoryEngine, put=lambda tx, k, v: tx.put(k, v), items=lambda view: view.items(), kept="kept")
    assert work.kept == "kept"
