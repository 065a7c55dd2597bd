"""Writes `docs/zoo.md`: each animal's story, its code, and the message that an author gets.

    python tests/zoo_page.py

The messages are what the checks really say when this is run, so it takes about as long as `test_zoo.py`, which holds
everything else on the page in step.
"""

from __future__ import annotations

import logging
import re
import socket
import tempfile
import textwrap
import traceback
from collections.abc import Mapping
from pathlib import Path

from zoo import MAX_LINES, Animal, all_animals, hunt

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
WIDTH = 116

TITLES = {
    "zoo_views": "Views, drafts and digests", "zoo_payloads": "Payloads and redo", "zoo_states": "The durable state",
    "zoo_images": "Images", "zoo_logs": "Log, leases and replay", "zoo_stores": "The store",
    "zoo_backups": "Backup and restore", "zoo_wrapped": "Around another's database",
    "zoo_plugins": "Plugins",
}
_INTRODUCTION = """# The zoo

Who checks the checks? Below are {count} engines, plugins and parts of the kit, each of them wrong in one way that has
bitten real systems, and otherwise like one that passes. The suite must catch every one of them, in the default profile,
by the check that is named with it; and every check must catch at least one. `tests/test_zoo.py` holds it to both.

Each is shown with the lines in which it differs from its base, {most} at most, and with the message that its author
would get. If a message of yours looks like one of these, the story above it may be yours too.

This page is written by `python tests/zoo_page.py`.
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
    lines = [part for line in message.split("\n") for part in _wrapped(line)]
    return "\n".join(lines if len(lines) <= 30 else [*lines[:18], "  …", *lines[-10:]])


def _wrapped(line: str) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent + "  ", break_on_hyphens=False) or [""]


def page(messages: Mapping[str, str]) -> str:
    """The page's text.

    Args:
        messages: by the animals' names.
    """
    animals = all_animals()
    parts = [_INTRODUCTION.format(count=len(animals), most=MAX_LINES)]
    for cage, title in TITLES.items():
        parts.append(f"\n## {title}\n")
        parts += [_entry(animal, messages.get(animal.name, "")) for animal in animals
                  if animal.broken.__module__ == cage]
    return "".join(parts)


def _entry(animal: Animal, message: str) -> str:
    contract, _, check = animal.caught_by.partition(".")
    statement = f"Caught by `{contract}.{check}`"
    if animal.replaces is not None:
        names = animal.replaces if isinstance(animal.replaces, tuple) else (
            f"{animal.replaces.__module__}.{animal.replaces.__qualname__}",)
        statement = f"In the place of {', '.join(f'`{name}`' for name in names)}. " + statement
    return (f"\n### {animal.name}\n\n{animal.story}\n\n```python\n{animal.code}\n```\n\n{statement}:\n\n"
            f"```text\n{message}\n```\n")


def messages_in(text: str) -> dict[str, str]:
    """The messages that a page holds, by the animals' names."""
    found = re.findall(r"^### (\w+)\n.*?^```text\n(.*?)\n```$", text, re.M | re.S)
    return dict(found)


def main() -> None:
    logging.disable(logging.CRITICAL)
    messages = {animal.name: _shortened(told(hunt(animal))) for animal in all_animals()}
    PAGE.write_text(page(messages), encoding="utf-8")


if __name__ == "__main__":
    main()
