"""Writes `docs/zoo.md`, a dozen animals with story, code and message, and `docs/zoo-animals.md`, a table of them all.

    python tests/zoo/zoo_page.py

The messages are what the checks really say when this is run, so the dozen are hunted, which takes some seconds.
`test_zoo.py` holds everything else on the page in step.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
import tempfile
import textwrap
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))  # as a script, it has no conftest

from zoo import CAGES, MAX_LINES, Animal, all_animals, hunt

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
TABLE_PAGE = PAGE.with_name("zoo-animals.md")
WIDTH = 116
MESSAGE_LINES = 12

STORIES = (
    "LostUpdate", "DeletesNotRedone", "PositionInMemory", "UnsyncedState", "ImageInBetween", "damage_is_a_torn_tail",
    "SilentGap", "CallsBackAtOnce", "ConfirmsTooEarly", "SameBranchAfterRestore", "CopiesTheFileAlone",
    "WritesOnItsOwn", "BlocksInLogged", "ScanToHighest", "CountsFromTheBeginning", "HashedDigest",
    "TakesAnyKey", "NewestByTheClock",
)
"""The animals that are told of in full, by their names, in the order of the cages."""
TITLES = {
    "zoo_views": "Views, transactions and digests", "zoo_payloads": "Payloads and redo",
    "zoo_states": "The durable state", "zoo_crashes": "Crashes and failing disks",
    "zoo_images": "Images", "zoo_logs": "Log, leases and replay", "zoo_stores": "The store",
    "zoo_backups": "Backup and restore", "zoo_wrapped": "Around another's database",
    "zoo_clusters": "Members of a cluster", "zoo_plugins": "Plugins",
    "zoo_sizes": "Sizes, refusals and ways of reading", "zoo_growth": "What grows, and what is not given back",
    "zoo_across": "Other processes, other times, and threads that die",
    "zoo_answers": "Equal values, readers that stop half-way, and what is asked again",
    "zoo_files": "Files: when they are written, their names, and damage",
}
_INTRODUCTION = """# The zoo

Who checks the checks? The zoo is {engines} engines, {plugins} plugins and {parts} parts of the kit. Each is wrong in
one way that has bitten real systems, and is otherwise like one that passes. `tests/zoo/test_zoo.py` checks two things.
Each animal is caught, in the default profile, by the check that is named with it. Each check catches at least one
animal, since a check that catches nothing could hold by accident: a check that authors run catches a broken engine or
plugin, and a check of `KitContract` a broken part of the kit.

Below, {told} animals are shown in full, and [a table](zoo-animals.md) lists them all. Story and code of each stand in
`tests/zoo/`. `python tests/zoo/zoo_page.py` writes this page from them.

## Stories

Each animal is shown with the lines in which it differs from its base, {most} at most, and with the message that its
author would get. If a message of yours looks like one of these, the story above it may be yours too. Two parts of a
message are left out here: the property in words, which [checks.md](checks.md) has, and the line that shows the
failure again.
"""
_TABLE = """# All animals of the zoo

[zoo.md](zoo.md) says what the zoo is for, and shows some of these in full, with what their authors would read. What is
wrong is the first sentence of the story. A row in bold names the file in which the animals below it stand.
[checks.md](checks.md) says what each check proves.

| animal | what is wrong | caught by |
| --- | --- | --- |
"""


def told(error: Exception) -> str:
    """What an author reads, without what differs from run to run."""
    text = "".join(traceback.format_exception_only(error)).strip()
    text = re.sub(rf" on {re.escape(socket.gethostname())}\b", " on …", text)
    text = re.sub(r"HOLDFAST_REPRODUCE=\S+", "HOLDFAST_REPRODUCE=…", text)
    text = re.sub(re.escape(tempfile.gettempdir()) + r"/holdfast-\w+|/dev/shm/holdfast-\w+", "…", text)
    return re.sub(r" object at 0x[0-9a-f]+", "", text)


def _shortened(message: str) -> str:
    """As much of a message as a reader of the page needs, in lines that fit it."""
    found, _, _ = message.partition("\nwhat is broken:")
    lines = [part for line in found.rstrip().split("\n") for part in _wrapped(line)]
    return "\n".join(lines if len(lines) <= MESSAGE_LINES else [*lines[: MESSAGE_LINES - 5], "  …", *lines[-4:]])


def _wrapped(line: str) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent + "  ", break_on_hyphens=False) or [""]


def page(messages: Mapping[str, str]) -> str:
    """The text of `zoo.md`.

    Args:
        messages: by the names of the animals in `STORIES`; without one, its place stays empty.

    Raises:
        KeyError: a name in `STORIES` is not that of an animal.
    """
    animals = all_animals()
    count = Counter(animal.kind for animal in animals)
    parts = [_INTRODUCTION.format(**count, told=len(STORIES), most=MAX_LINES)]
    parts += [_entry(animal, messages.get(animal.name, "")) for animal in told_in_full()]
    return "".join(parts)


def table() -> str:
    """The text of `zoo-animals.md`. Raises `KeyError` if a cage has no title."""
    animals = all_animals()
    parts = [_TABLE]
    for cage in CAGES:
        parts.append(f"| **{TITLES[cage]}**: `tests/zoo/{cage}.py` | | |\n")
        parts += [_row(animal) for animal in animals if animal.broken.__module__ == cage]
    return "".join(parts)


def told_in_full() -> list[Animal]:
    """The animals of `STORIES`."""
    named = {animal.name: animal for animal in all_animals()}
    return [named[name] for name in STORIES]


def _entry(animal: Animal, message: str) -> str:
    statement = f"Caught by `{animal.caught_by}`"
    if animal.replaces is not None:
        names = animal.replaces if isinstance(animal.replaces, tuple) else (
            f"{animal.replaces.__module__}.{animal.replaces.__qualname__}",)
        statement = f"In the place of {', '.join(f'`{name}`' for name in names)}. " + statement
    return (f"\n### {animal.name}\n\n{animal.story}\n\n```python\n{animal.code}\n```\n\n{statement}:\n\n"
            f"```text\n{message}\n```\n")


def _row(animal: Animal) -> str:
    """A check's name says which one it is without that of its contract: one class of tests has them all."""
    _, _, check = animal.caught_by.partition(".")
    name = f"`{animal.name}`"
    if animal.name in STORIES:
        name = f"[{name}](zoo.md#{animal.name.lower()})"
    wrong = _first_sentence(animal.story).replace("|", "\\|")
    return f"| {name} | {wrong} | `{check}` |\n"


def _first_sentence(story: str) -> str:
    return re.split(r"(?<=[.?!])\s+(?=[^a-z])", " ".join(story.split()), maxsplit=1)[0]


def messages_in(text: str) -> dict[str, str]:
    """The messages that a page holds, by the animals' names."""
    found = re.findall(r"^### (\w+)\n.*?^```text\n(.*?)\n```$", text, re.M | re.S)
    return dict(found)


def main() -> None:
    logging.disable(logging.CRITICAL)
    messages = {animal.name: _shortened(told(hunt(animal))) for animal in told_in_full()}
    PAGE.write_text(page(messages), encoding="utf-8")
    TABLE_PAGE.write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main()
