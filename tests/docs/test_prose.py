"""No page, docstring, comment or message has a turn of phrase that reads oddly in English.

Add a turn to `BANNED` once no page or module has it any more, together with what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("engine", "replay", "backup", "benchmarks", "tests", "docs", ".")
NOT_READ = "tests/docs/test_prose.py"
"""This file, which quotes the turns."""

BANNED = {
    r"(?<!\bthere )\b(is|are|was|were) no "
    r"(?!better|doubt|earlier|fewer|kinder|later|less|longer|more|such|worse)\w": "is not a",
    r"\b(go|goes|going|went) on on\b": "continues on",
    r"\blets go\b": "releases",
    r"\bwhether or not\b": "whether",
}
"""Turns as regular expressions, whatever their case, and what to write instead."""


def found(text: str) -> Iterator[tuple[int, str]]:
    """The banned turns of a text: in which line, counted from 1, and what is wrong."""
    for number, line in enumerate(text.split("\n"), 1):
        for turn, instead in BANNED.items():
            for match in re.finditer(turn, line, re.IGNORECASE):
                yield number, f'"{match[0]}": write "{instead}", or put it otherwise'


def read() -> Iterator[tuple[str, str]]:
    """Each page and module, by its path below the project's root."""
    for folder in FOLDERS:
        here = ROOT / folder
        for path in sorted(here.glob("*.md") if folder == "." else here.rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in (".md", ".py") and name != NOT_READ:
                yield name, path.read_text(encoding="utf-8")


def test_no_page_and_no_module_has_a_banned_turn() -> None:
    texts = dict(read())
    assert {"README.md", "docs/design.md", "engine/store/store.py", "tests/conftest.py"} <= texts.keys()
    assert not [f"{name}:{line}: {wrong}" for name, text in texts.items() for line, wrong in found(text)]


@pytest.mark.parametrize("line", ["This is no list.", "they were no group", "It goes on on a branch", "IT LETS GO",
                                  "There is a place, which is no directory"])
def test_an_odd_turn_is_found(line: str) -> None:
    assert [number for number, _ in found(f"Fine.\n{line}\n")] == [2]


@pytest.mark.parametrize("line", ["There is no list.", "It is no longer there.", "Nothing is worse than this",
                                  "it is no more than that", "It goes on, on another branch"])
def test_a_plain_sentence_is_not(line: str) -> None:
    assert not list(found(line))
