"""What the documents show runs as it stands, and says what is so. `doc_pages.py` says how a page is made of files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import doc_pages
import pytest
from doc_pages import GUIDES

from holdfast.engine.testing import current_profile
from holdfast.engine.testing.support.report import installed_contracts

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
REFRESH = "run: python tests/docs/doc_pages.py"
QUICK = {"writing-an-engine.md": "held_view or redo or snapshot or digest or position or says_what_it_is or clean",
         "writing-a-plugin.md": ""}
"""Which checks of a guide's test file are run, as pytest's -k; all where the profile is not the default one."""
EXHIBITS = {"engine-bitcask.md": ("held_view or redo or snapshot or digest or position or without_room",
                                  "view or redo or digest or position or room or mutated or opening or backup", ""),
            "engine-duckdb.md": ("read_only or whose or image_outlives or only_a_checkpoint",
                                 "position or image or redo or whose", "")}
"""The worked examples, and which checks of each are run in the profiles `default`, `ci` and `nightly`. An opening of
DuckDB takes so long that all of them take minutes."""
CODE_LINES = 250
"""A worked example has fewer lines of code than this, its test file included."""

guides = pytest.mark.parametrize("guide", GUIDES, ids=[guide.stem for guide in GUIDES])


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "graph.md", DOCS / "asyncio.md", DOCS / "cluster.md",
                                  DOCS / "repository.md", DOCS / "interop.md", *GUIDES,
                                  *(DOCS / page for page in EXHIBITS)],
                         ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_in_an_empty_folder(page: Path, tmp_path: Path) -> None:
    assert "page.py" in doc_pages.write_out(page, tmp_path)
    done = subprocess.run([sys.executable, "-W", "error", "page.py"], cwd=tmp_path, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@guides
def test_a_guides_test_file_is_short_and_passes(guide: Path, tmp_path: Path) -> None:
    [test] = [name for name in doc_pages.write_out(guide, tmp_path) if name.startswith("test_")]
    lines = [line for line in (tmp_path / test).read_text().split("\n")[1:] if line.strip()]
    assert len(lines) < 10
    chosen = QUICK[guide.name] if current_profile().name == "default" else ""
    done = doc_pages.run_pytest(tmp_path, test, "-k", chosen, "-W", "error")
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 10


@pytest.mark.parametrize("exhibit", EXHIBITS)
def test_a_worked_example_is_short_and_passes(exhibit: str, tmp_path: Path) -> None:
    files = doc_pages.write_out(DOCS / exhibit, tmp_path)
    lines = [line for name in files for line in (tmp_path / name).read_text().split("\n")]
    assert sum(bool(line.strip()) and not re.fullmatch(r"# \w+\.py", line) for line in lines) < CODE_LINES
    [test] = [name for name in files if name.startswith("test_")]
    chosen = EXHIBITS[exhibit][("default", "ci", "nightly").index(current_profile().name)]
    done = doc_pages.run_pytest(tmp_path, test, "-k", chosen, "-W", "error")
    assert done.returncode == 0, done.stdout[-3000:]


def without_blob(text: str) -> str:
    """Without what another release of Hypothesis would write otherwise."""
    return re.sub(r"(HOLDFAST_REPRODUCE=\w+)@\S+", r"\1", text)


@guides
def test_a_guides_mistake_fails_as_shown_and_is_shown_again(guide: Path, tmp_path: Path) -> None:
    [shown], [again] = doc_pages.blocks(guide, "text"), doc_pages.blocks(guide, "console")
    test, check = doc_pages.make_mistake(guide, tmp_path), GUIDES[guide]
    found = doc_pages.what_fails(tmp_path, test, check, seed=1)
    assert f"what is broken: {check}" in found
    assert without_blob(found) == without_blob(shown), REFRESH
    assert without_blob(doc_pages.again(guide, found)) == without_blob(again), REFRESH
    line = re.search(r"HOLDFAST_REPRODUCE=(\S+)", found)
    if line is not None:  # Hypothesis prints the example elsewhere then
        once_more = doc_pages.what_fails(tmp_path, test, check, HOLDFAST_REPRODUCE=line[1])
        assert once_more.startswith(found.partition("Failing test case")[0]), once_more
        assert f"what is broken: {check}" in once_more


def test_the_guide_says_how_many_checks_an_author_runs() -> None:
    number = sum(len(contract.checks()) for contract in installed_contracts())
    assert f"runs {number} checks" in (DOCS / "writing-an-engine.md").read_text()


def test_every_check_is_listed_with_what_it_proves() -> None:
    assert doc_pages.CHECKS.read_text() == doc_pages.checks_page(), REFRESH


def test_every_command_and_option_is_listed_with_what_it_does() -> None:
    """Pages left out options that were added later: --wait of restore and verify, --token-file, the slots."""
    assert doc_pages.COMMANDS.read_text() == doc_pages.commands_page(), REFRESH
    assert doc_pages.REPOSITORY_COMMANDS.read_text() == doc_pages.repository_commands_page(), REFRESH


def test_the_pages_name_no_option_that_is_not_there() -> None:
    pages = doc_pages.commands_page() + doc_pages.repository_commands_page()
    known = {*re.findall(r"--[a-z][a-z-]*", pages), "--help"}
    for page in (ROOT / "README.md", DOCS / "backup.md", DOCS / "json.md", DOCS / "graph.md",
                 DOCS / "interop.md", DOCS / "repository.md"):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text())) <= known, page.name


def test_the_anomalies_page_names_tests_that_are_there() -> None:
    named = set(re.findall(r"`(test_(?!ldbc)\w+)`", (DOCS / "anomalies.md").read_text()))
    tests = (ROOT / "tests/engine/builtin/test_ldbc_acid.py").read_text()
    there = set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))
    seen = {name for name in there if name.endswith(("_can_be_seen", "_can_be_seen_to_fail"))}
    assert named <= there
    assert there - seen - named == {"test_at_least_waits_for_what_was_not_waited_for"}
    assert len(seen) == 11


def test_every_file_that_a_page_names_is_there() -> None:
    for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        for name in re.findall(r"`((?:engine|replay|backup|benchmarks|tests|docs)/[\w./-]+\.\w+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
        for name in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / name).exists(), f"{page.name} links to {name}"
