"""The command line in pipes and bad places, and what it imports."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from backup_worlds import open_store, write

import holdfast.backup
from holdfast import backup
from holdfast.backup import terminal
from holdfast.engine import GraphStore

MAIN = "from holdfast.backup.cli import main; main()"


def run(script: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """A shell's script, in which $HF is the command."""
    env = {**os.environ, "PY": sys.executable, **kwargs.pop("env", {})}
    return subprocess.run(["bash", "-c", f"HF() {{ \"$PY\" -c '{MAIN}' \"$@\"; }}; {script}"], capture_output=True,
                          text=True, check=False, env=env, timeout=60, **kwargs)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.delenv("HOLDFAST_TOKEN", raising=False)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("backup")
    with open_store(place / "store") as store:
        write(store, 1, 100)
        backup.run(store, place / "target")
        write(store, 2, 2000)
        backup.run(store, place / "target")
    return place / "target"


def test_output_that_cannot_be_written(target: Path) -> None:
    """Closed, full, or a pipe whose reader has gone: it ended in tracebacks."""
    for command in ("info", "verify", "log", "--version"):
        what = command if command.startswith("-") else f"{command} {target}"
        closed = run(f"HF {what} >&-")
        assert (closed.returncode, closed.stderr) == (0, "")
        gone = run(f"set -o pipefail; HF {what} | true")
        assert (gone.returncode, gone.stderr) == (0, "")
        both = run(f"HF {what} >&- 2>&-")
        assert both.returncode == 0
        full = run(f"HF {what} >/dev/full")
        assert "Traceback" not in full.stderr
        assert "No space left" in full.stderr or "no room" in full.stderr
        assert (full.returncode == 0) == (command == "verify"), "what was done is done; what was asked for is not told"
    head = run(f"set -o pipefail; HF log {target} --json | head -1")
    assert (head.returncode, head.stderr) == (0, "")
    assert json.loads(head.stdout)["txid"] == 1 + backup.info(target).bounds.first


@pytest.mark.usefixtures("runtime")
def test_serve_serves_with_its_output_closed(tmp_path: Path) -> None:
    """It died as soon as it was ready."""
    done = run(f"timeout -s TERM 4 \"$PY\" -c '{MAIN}' serve {tmp_path}/store --create --engine memory --listen :0 >&-")
    assert done.returncode in (0, 124), "told to stop, and not before"
    assert "Traceback" not in done.stderr
    assert backup.info(tmp_path / "store").log_clean


def test_nothing_steers_a_terminal(tmp_path: Path) -> None:
    done = run("HF info \"$PLACE\"; HF backup \"$PLACE\" x", env={"PLACE": f"{tmp_path}/\x1b[2J\nall verified\x07"})
    assert done.returncode == 2
    assert not set(done.stderr) & {"\x1b", "\x07"}
    assert "\\x1b[2J\\nall verified\\x07" in done.stderr


def test_letters_that_a_terminal_lacks_are_written_otherwise(target: Path, tmp_path: Path) -> None:
    """In a Latin or ASCII locale a path with other letters made the command print nothing at all, with exit code 0."""
    (tmp_path / "żółw").symlink_to(target)
    done = run(f"HF info {tmp_path}/żółw", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert rf"{tmp_path}/\u017c\xf3\u0142w is a backup" in done.stdout


def test_an_empty_path_is_not_the_directory_that_the_command_runs_in(target: Path) -> None:
    """A variable that was not set in a script named whatever directory cron had started it in."""
    for command in ("info", "verify", "log", f"restore {target}", "backup single://127.0.0.1:1", "serve"):
        done = run(f'cd {target}; HF {command} ""')
        assert (done.returncode, "the path is empty" in done.stderr) == (2, True), command


def test_a_directory_without_rights_is_not_wrong_usage(target: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    """The parser of arguments looked whether a path can be read, and told it with exit code 2. Whether it can be used
    is for the command to say, with the exit code for rights."""
    from holdfast.backup.cli import answer

    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(os, "listdir", refuse)
    for command in (["verify", str(target)], ["restore", str(target), str(target.parent / "restored")]):
        with pytest.raises(SystemExit) as ended:
            answer(command)
        assert ended.value.code == 7
        assert "this user has no permission" in capsys.readouterr().err


def test_no_error_ends_in_a_traceback_unless_it_is_asked_for(target: Path) -> None:
    broken = (f"\"$PY\" -c 'import sys, holdfast.backup.info; sys.argv[1:] = [\"info\", \"{target}\"]\n"
              "def f(*_): raise KeyError(7)\nsys.modules[\"holdfast.backup.info\"].info = f\n"
              f"{MAIN}'")
    done = run(broken)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "HOLDFAST_TRACEBACK" in done.stderr
    assert "Traceback" in run(broken, env={"HOLDFAST_TRACEBACK": "1"}).stderr


def test_short_options_and_the_version() -> None:
    assert re.fullmatch(r"holdfast \d+\.\d+\.\d+\S*\n", run("HF --version").stdout)
    for command in ("-h", "backup -h", "slots list -h"):
        assert "--help" in run(f"HF {command}").stdout


def test_no_secret_is_an_argument() -> None:
    """Whoever is on the machine can list them."""
    for command in ("backup", "serve", "slots list", "slots drop"):
        shown = run(f"HF {command} --help").stdout
        assert "--token-file" in shown
        assert not re.search(r"--token(?!-file)", shown)


def test_long_runs_say_how_far_they_are_off_a_terminal(monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    """With rate and time left, from the second report of a stage on."""
    seconds = iter(range(0, 100, 5))
    monkeypatch.setattr(terminal, "REAL", SimpleNamespace(clock=SimpleNamespace(monotonic=lambda: next(seconds))))
    with terminal.progress_told(False) as progress:
        progress("copy", 0, 2)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(terminal, "PROGRESS_S", 0.0)
        progress("copy", 1_500_000, 3_500_000)
        assert capsys.readouterr().err == "holdfast: copy: 1.5 MB of 3.5 MB, 150.0 kB/s, 13 s left\n"
        progress("images", 1, 3)
        assert capsys.readouterr().err == "holdfast: images: 1 of 3 images and branches\n"
    with terminal.progress_told(True) as progress:
        progress("log", 1, 2)
        assert json.loads(capsys.readouterr().err) == {"progress": "log", "done": 1, "total": 2, "per_second": 0.0,
                                                       "seconds_left": None}
        progress("log", 21, 31)
        assert json.loads(capsys.readouterr().err) == {"progress": "log", "done": 21, "total": 31, "per_second": 2.0,
                                                       "seconds_left": 5.0}


def test_on_a_terminal_there_are_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
                                                    ) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with terminal.progress_told(False) as progress:
        progress("copy", 0, 90_000_000)
        time.sleep(0.3)
        progress("copy", 3_000_000, 90_000_000)
        time.sleep(0.3)
        progress("copy", 6_000_000, 90_000_000)
        time.sleep(0.3)
    shown = capsys.readouterr().err
    assert "6.0 MB of 90.0 MB" in shown
    assert re.search(r"\d MB/s", shown)
    assert re.search(r"0:00:\d\d", shown)


def test_hints_speak_of_options_and_not_of_arguments() -> None:
    """Of every message and hint that the command line may show, none names an argument of Python's."""
    root = Path(holdfast.backup.__file__).parents[1]
    spoken = []
    paths = [path for top in ("backup", "engine", "replay") for path in (root / top).rglob("*.py")]
    for path in sorted(path for path in paths if "testing" not in path.parts):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "hint":
                spoken += [part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)
                           and isinstance(part.value, str)]
    assert len(spoken) > 50
    arguments = re.compile(rf"\b({'|'.join(terminal._FLAGS)})=|\b({'|'.join(terminal._ALWAYS)})\b")
    assert any(arguments.search(text) for text in spoken), "the test looks at hints"
    for text in spoken:
        assert not arguments.search(terminal.in_flags(text)), text


HEAVY = ("numpy", "lmdb", "aiohttp", "rich", "sqlite3", "rocksdict", "asyncio",
         "holdfast.engine.builtin.graph", "holdfast.engine.source.http.server", "holdfast.engine.store.store",
         "holdfast.engine.contract.plugin", "holdfast.backup.serve_cli", "holdfast.backup.cluster_cli",
         "holdfast.backup.check_cli", "holdfast.backup.repository.cli")
OF_INSTALLED = ("importlib.metadata", "shutil", "tempfile")
"""What it takes to look into what is installed."""


def loaded(arguments: list[str]) -> set[str]:
    """The modules that a command has imported when it ends."""
    code = (f"import sys; sys.argv[1:] = {arguments!r}\ntry:\n    {MAIN}\n"
            "finally:\n    print(*sys.modules, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.usefixtures("runtime")
def test_a_command_imports_what_it_uses(target: Path, tmp_path: Path) -> None:
    """Nearly all of the half second that each command took was imports."""
    ours = {}
    for command in ("--version", "info", "log"):
        modules = loaded([command] if command.startswith("-") else [command, str(target)])
        assert modules & set(HEAVY) == set(), command
        ours[command] = sum(m.startswith("holdfast") for m in modules)
        assert command == "--version" or not modules & set(OF_INSTALLED), command
    assert ours["--version"] <= 18
    target = tmp_path / "target"
    with GraphStore.open(tmp_path / "store", online_backup_server="127.0.0.1:0") as store:
        uri = str(store.backup_uri)
        for number in range(3):
            with store.transaction() as tx:
                tx.add_node("N", number=number)
            modules = loaded(["backup", uri, str(target)])
            assert backup.info(target).bounds.last == number + 1
            assert ("numpy" in modules) == (number == 0), "the first one checks its copy"
    assert modules & {*HEAVY, *OF_INSTALLED, "ctypes", "holdfast.backup.target.full"} == set()
    assert sum(m.startswith("holdfast") for m in modules) <= 76


def test_a_free_threaded_python_is_refused() -> None:
    """The overlay and the line rest on the interpreter lock."""
    code = "import sys; sys._is_gil_enabled = lambda: False; import holdfast.engine"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "free-threaded" in done.stderr.splitlines()[-1]
