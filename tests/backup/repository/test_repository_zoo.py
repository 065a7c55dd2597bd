"""Every broken repository is caught by the check that is named with it, with each of five seeds (two by default). See
`repository_zoo.py`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from repository_zoo import ANIMALS, Animal, hunt, run_check

from holdfast.engine.testing import current_profile

DRAWS = range(1, 3 if current_profile().name == "default" else 6)
CHECKS = {f"{one.caught_by} {sorted(one.how.items(), key=str)}": (one.caught_by, one.how) for one in ANIMALS}


@pytest.mark.parametrize("animal", [pytest.param(animal, id=animal.name) for animal in ANIMALS])
def test_each_broken_repository_is_caught(animal: Animal, tmp_path: Path) -> None:
    """By what it does, and not by a slip of the one who broke it."""
    for draw in DRAWS:
        place = tmp_path / str(draw)
        place.mkdir()
        error = hunt(animal, draw, place)
        assert error is not None, f"{animal.caught_by} holds with seed {draw}"
        slip = isinstance(error, (NameError, AttributeError, ImportError, SyntaxError)) or (
            isinstance(error, TypeError) and re.search(r"argument|callable", str(error)))
        assert not slip, error


@pytest.mark.skipif(current_profile().name == "default", reason="each runs as a test of its own, too")
@pytest.mark.parametrize(("check", "how"), CHECKS.values(), ids=[name for name, _ in CHECKS.values()])
def test_the_right_one_is_not_caught(check: str, how: Mapping[str, Any], tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """With seeds that its own test does not use, and a sample of the orders of a race."""
    monkeypatch.setattr("test_repository_races.ONE_IN", 8)
    monkeypatch.setattr("test_repository_races.LOTS", 15)
    error = run_check(check, how, DRAWS[0], tmp_path)
    if error is not None:
        raise error


def test_each_animal_tells_another_story() -> None:
    for what in ("name", "story", "edits"):
        twice = [told for told, times in Counter(getattr(animal, what) for animal in ANIMALS).items() if times > 1]
        assert not twice
    assert all(len(animal.story) > 60 for animal in ANIMALS)
    assert len(ANIMALS) >= 14


def test_the_page_has_their_stories() -> None:
    page = (Path(__file__).parents[3] / "docs" / "repository-design.md").read_text(encoding="utf-8")
    for animal in ANIMALS:
        assert f"\n| `{animal.name}` | {animal.story} |\n" in page
