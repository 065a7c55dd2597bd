"""Every animal of the zoo is caught by the checks that it names, and every check catches one: see `zoo.py`."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import zoo_page
from fault_rig import no_strace, require
from zoo import CAGES, CONTRACTS, MAX_LINES, Animal, NotCaught, all_animals, contract, hunt

from holdfast.engine.model.positions import Position
from holdfast.engine.testing import PROFILES

ZOO = all_animals()
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "zoo.md"


@pytest.mark.parametrize("animal", [
    pytest.param(animal, id=animal.name) for animal in ZOO
    if isinstance(animal.broken, type) and animal.broken.__base__.__module__ in CAGES])
def test_what_is_made_for_the_zoo_to_break_is_healthy(animal: Animal) -> None:
    """What other animals are made from is held to the whole contract elsewhere. (These come first: some animals leave
    threads behind, which is what is wrong with them.)"""
    with pytest.raises(NotCaught, match="holds for"):
        hunt(replace(animal, broken=animal.broken.__base__))


@patch("holdfast.engine.testing.kit.commit_outcomes.SOON_S", 1.0)  # what never comes back is waited for
def caught(animal: Animal, check: str) -> Exception:
    """Mutations hit by lot, and now and then 40 of them all miss: then ten times as many are tried."""
    with suppress(NotCaught):
        return hunt(animal, check, shrink=False)
    default = PROFILES["default"]
    return hunt(animal, check, shrink=False, profile=replace(default, mutations=10 * default.mutations))


@pytest.mark.parametrize(("animal", "check"), [
    pytest.param(animal, check, id=f"{animal.name}-{check.partition('.test_')[2]}")
    for animal in ZOO for check in (animal.caught_by, *animal.also)])
def test_each_animal_is_caught(animal: Animal, check: str) -> None:
    """Not by a slip of its own: one stood where it was called with other arguments by then, and any check would have
    caught it. (Damaged bytes may well end in a `TypeError`, of what they are unpacked to.)"""
    if check.endswith("test_what_a_checkpoint_writes_is_synced"):
        require("strace", no_strace())
    error = caught(animal, check)
    slip = isinstance(error, (NameError, AttributeError, ImportError)) or (
        isinstance(error, TypeError) and re.search(r"argument|callable", str(error)))
    assert not slip, "it is broken in another way"
    message = zoo_page.told(error)
    assert f"what is broken: {check.partition('.')[2]}\n" in message
    assert message.partition("\n")[0].strip(), "the message begins without a word"


def test_an_animal_that_is_healthy_is_not_caught() -> None:
    """Without it, `hunt` could take anything for a catch."""
    animal = next(animal for animal in ZOO if animal.name == "SharedSnapshot")
    with pytest.raises(NotCaught, match="holds for SharedSnapshot"):
        hunt(animal, "EngineContract.test_what_is_closed_is_clean")
    with pytest.raises(NotCaught, match="does not apply"):
        hunt(animal, "EngineContract.test_a_bulk_load_is_one_transaction")


def test_an_image_in_between_is_caught_in_a_long_checkpoint() -> None:
    """The first lines alone were looked at, and most engines move their position after these."""
    animal = next(animal for animal in ZOO if animal.name == "ImageInBetween")

    def checkpoint(self: Any, upto: Position) -> Any:
        for _ in range(1000):
            pass
        return animal.broken.checkpoint(self, upto)

    hunt(replace(animal, broken=type("Long", (animal.broken,), {"checkpoint": checkpoint})))


def test_each_check_catches_something() -> None:
    """One that catches nothing could hold by accident."""
    checks = {f"{name}.{check}" for name in CONTRACTS for check in contract(name).checks()}
    catching = {check for animal in ZOO for check in (animal.caught_by, *animal.also)}
    assert catching <= checks
    assert checks == catching


def test_each_check_catches_something_of_its_own_side() -> None:
    """An author's check that catches broken parts of the kit only finds nothing that an author could mend."""
    sides = {f"{name}.{check}": name == "KitContract" for name in CONTRACTS for check in contract(name).checks()}
    for kit in (True, False):
        catching = {check for animal in ZOO for check in (animal.caught_by, *animal.also)
                    if (animal.kind == "parts") == kit}
        missing = {check for check, of_kit in sides.items() if of_kit == kit} - catching
        assert not missing, f"these catch nothing of their own side: {sorted(missing)}"


def test_each_animal_is_a_few_lines_and_another_bug() -> None:
    for animal in ZOO:
        assert animal.lines <= MAX_LINES, f"{animal.name} has {animal.lines} lines"
        assert len(animal.story) > 60, f"{animal.name} tells no story"
    for what in ("name", "story", "code"):
        twice = [text for text, times in Counter(getattr(animal, what) for animal in ZOO).items() if times > 1]
        assert not twice, f"two animals have the same {what}: {twice}"


def test_the_zoo_is_large() -> None:
    count = Counter(animal.kind for animal in ZOO)
    assert count["plugins"] >= 8
    assert count["engines"] >= 26


def test_the_page_is_in_step() -> None:
    """`python tests/zoo/zoo_page.py` writes it. Messages hold times and places, so the page's own are taken."""
    text = PAGE.read_text(encoding="utf-8")
    messages = zoo_page.messages_in(text)
    assert text == zoo_page.page(messages), "run: python tests/zoo/zoo_page.py"
    of_all = zoo_page.TABLE_PAGE.read_text(encoding="utf-8")
    assert of_all == zoo_page.table(), "run: python tests/zoo/zoo_page.py"
    assert set(messages) == set(zoo_page.STORIES)
    assert all(messages.values()), "a message is empty: run: python tests/zoo/zoo_page.py"


def test_the_page_tells_a_story_of_each_cage() -> None:
    assert {animal.broken.__module__ for animal in zoo_page.told_in_full()} == set(CAGES)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(PAGE.parent.glob("*.md"))], ids=lambda page: page.stem)
def test_no_page_is_too_long_to_read(page: Path) -> None:
    """The formats are looked up and not read: every byte has its row. If the zoo outgrows its page, tell fewer
    stories."""
    lines = len(page.read_text(encoding="utf-8").splitlines())
    assert lines <= 500 or page.name == "formats.md", f"{page.name} has {lines} lines"
