"""`holdfast check`, and `--engine module:Class`: an author's engine on the command line, without a test file."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from browser import Browser, why_no_browser
from cli_rig import COMMAND, holdfast, told
from doc_pages import write_out

from holdfast import backup
from holdfast.backup.engines import engine_given, named
from holdfast.engine.errors import SettingError
from holdfast.engine.store.store import Store

GUIDE = Path(__file__).parents[2] / "docs" / "writing-an-engine.md"


@pytest.fixture(scope="module")
def authors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an author: the guide's engine, and one with its mistake."""
    place = tmp_path_factory.mktemp("authors")
    write_out(GUIDE, place)
    right = (place / "scores.py").read_text()
    wrong = right.replace("state = dict(self._shown[0])", "state = self._shown[0]")
    assert wrong != right
    (place / "mistaken.py").write_text(wrong)
    (place / "no_puts.py").write_text("from scores import *\nclass NoPuts(Scores):\n    set = None\n"
                                      "class Lacking(ScoreEngine):\n    def begin(self):\n"
                                      "        return NoPuts(self._shown[0])\n")
    (place / "broken_module.py").write_text("import nothing_of_this_name\n")
    (place / "page.py").unlink()
    return place


def run(authors: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "PYTEST_"))}
    return subprocess.run([*COMMAND, *arguments], cwd=authors, env={**kept, **environment}, capture_output=True,
                          text=True, timeout=200)


def test_an_engine_without_a_workload_is_checked(authors: Path) -> None:
    done = run(authors, "check", "scores:ScoreEngine", "--contract", "engine", "--only", "*reading*", "--seed", "3",
               "--json", "report.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("scores:ScoreEngine: put=Scores.set, get=Scores.get, items=ScoreView.items; keys are "
                                  "str, values int; not found: delete, find, scan, range, count\n")
    assert "NOT TRIED: ways of reading a view" in done.stdout
    found = json.loads((authors / "report.json").read_text())
    assert (found["ok"], found["faults"], found["circumstances"]["seed"]) == (True, [], 3)
    assert all("reading" in check["check"] for check in found["tried"])
    assert "NEVER RAN" not in done.stdout
    assert found["circumstances"]["engine"] == "scores.ScoreEngine"


def test_a_mistake_is_told_with_a_line_that_shows_it_again(authors: Path) -> None:
    done = run(authors, "check", "mistaken:ScoreEngine", "--only", "test_a_snapshot_stays_as_it_is", "--seed", "1")
    assert done.returncode == 1, done.stderr
    assert "holdfast: broken: EngineContract.test_a_snapshot_stays_as_it_is" in done.stderr
    [line] = [line for line in done.stdout.splitlines() if "to see it again: " in line]
    variable, _, command = line.partition("to see it again: ")[2].partition(" ")
    assert command == "holdfast check mistaken:ScoreEngine"
    name, _, value = variable.partition("=")
    again = run(authors, *command.split()[1:], **{name: value})
    assert again.returncode == 1
    assert "0 checks hold, 0 do not apply, 1 are broken" in again.stdout


def test_a_test_class_and_a_contract_of_it(authors: Path) -> None:
    done = run(authors, "check", "test_scores:TestScores", "--only", "*digest*", "--contract", "engine",
               "--json", "digest.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("test_scores:TestScores: the workload of TestScores\n")
    assert "0 are broken" in done.stdout
    [check] = [check for check in json.loads((authors / "digest.json").read_text())["tried"]
               if check["check"].endswith("test_the_digest_follows_the_content")]
    assert check["examples"] > 10


def test_processes_are_killed_although_nobody_wrote_a_workload(authors: Path) -> None:
    done = run(authors, "check", "scores:ScoreEngine", "--only", "test_a_killed_process_loses_nothing_acknowledged")
    assert "process kills tried" in done.stdout, done.stdout


@pytest.mark.parametrize(("target", "said"), [
    ("scores", "'scores' names nothing"),
    ("nothing_here:Engine", "there is no module 'nothing_here'"),
    ("broken_module:Engine", "the module 'broken_module' cannot be imported: ModuleNotFoundError: No module named "
                             "'nothing_of_this_name'"),
    ("scores:Nothing", "scores has no 'Nothing'"),
    ("scores:ScoreView", "scores:ScoreView gives no workload: TypeError"),
    ("no_puts:Lacking", "NoPuts has no put(key, value) or set(key, value) or __setitem__(key, value)\n  write a "
                        "workload beside it, for holdfast check no_puts:workload\n  from holdfast.engine.testing "
                        "import KeyValues\n  def workload():\n      return KeyValues(Lacking,"),
])
def test_what_cannot_be_checked_is_said_plainly(target: str, said: str, authors: Path) -> None:
    done = run(authors, "check", target)
    assert done.returncode == 2
    assert done.stderr.startswith(f"holdfast: {said}")
    assert not done.stdout


@pytest.mark.parametrize(("option", "said"), [
    (("--only", "nothing"), "no check fits the pattern 'nothing'"), (("--contract", "none"), "no contract 'none'"),
    (("--profile", "hourly"), "--profile 'hourly'"), (("--html", "/nowhere/x.html"), "/nowhere is not a directory"),
])
def test_options_that_make_no_sense(option: tuple[str, str], said: str) -> None:
    done = holdfast("check", "holdfast.engine.builtin.memory:MemoryEngine", *option, code=2)
    assert said in done.stderr


@pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser()))
def test_the_page_fits_a_phone_and_a_desk_and_needs_no_network(authors: Path, tmp_path: Path) -> None:
    for module, verdict in (("scores", "every check holds"), ("mistaken", "1 check broken")):
        run(authors, "check", f"{module}:ScoreEngine", "--html", f"{module}.html", "--contract", "engine", "--only",
            "test_a_snapshot_stays_as_it_is" if module == "mistaken" else "*long_history*", "--seed", "1")
        page = (authors / f"{module}.html").read_text()
        assert "http:" not in page
        assert "https:" not in page
        (tmp_path / module).mkdir()
        with Browser(tmp_path / module) as browser:
            for width in (390, 1280):
                browser.screen(width, 900, phone=width < 500)
                browser.open((authors / f"{module}.html").as_uri())
                assert verdict in browser.evaluate("document.querySelector('h1').innerText")
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                curves = browser.evaluate("document.querySelectorAll('svg').length")
                assert curves == (5 if module == "scores" else 0)


# --- --engine module:Class -------------------------------------------------------------------------------------------


def test_the_commands_take_an_engine_that_is_not_registered(authors: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(authors)
    engine = ("--engine", "scores:ScoreEngine")
    with Store.open(tmp_path / "store", named("scores:ScoreEngine")) as store:
        with store.transaction() as tx:
            tx.add("Ada", 3)
        backup.run(store, tmp_path / "target", engine=named("scores:ScoreEngine"))
        with backup.Repository.init(tmp_path / "repository") as repository:
            repository.backup(store)
    refused = told("verify", tmp_path / "target", code=2)
    assert refused["message"] == "no engine named 'scores'"
    assert refused["hint"].endswith("or pass its class: --engine …")
    assert told("verify", tmp_path / "target", *engine)["bounds"]["last"] == 1
    assert told("restore", tmp_path / "target", tmp_path / "restored", *engine)["txid"] == 1
    repository_url = (tmp_path / "repository").as_uri()
    assert told("restore", repository_url, tmp_path / "again", *engine)["txid"] == 1
    assert told("repo", "rehearse", repository_url, *engine)["txid"] == 1
    assert told("repo", "restore", repository_url, tmp_path / "third", *engine)["txid"] == 1
    assert told("verify", tmp_path / "target", "--engine", "memory", code=4)["error"] == "WrongEngine"
    raw = told("repo", "restore", repository_url, tmp_path / "raw", "--raw", *engine, code=2)
    assert "--raw takes no --delta, no --engine" in raw["message"]


def test_only_a_command_line_can_have_a_module_imported() -> None:
    with pytest.raises(SettingError, match="no engine named 'os:getcwd'"):
        backup.engines.engine_named("os:getcwd", None)


def test_a_reference_that_is_no_engine() -> None:
    with pytest.raises(SettingError, match="os:getcwd is not a subclass of"):
        engine_given("os:getcwd")
    assert engine_given(None) is None
    memory = engine_given("memory")
    assert memory is engine_given("holdfast.engine.builtin.memory:MemoryEngine")
