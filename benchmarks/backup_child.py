"""Backups in a separate process, one after the other, until they are stopped.

`full` starts full backups, each into a new directory below the given one, which is removed at once. `image` starts
images into a repository there, at the bytes a second that follow the word. `incremental`, `verify` and `restore` work
on one backup, made before this says `ready`. Each answers `going` once the first runs. `halt` waits for the one that
runs to end, and answers `halted` with their number. Full copies are not checked: what is measured is the cost of
copying for the store that is copied.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .. import backup
from . import child

_COPY = backup.Policy(verify=False)


class Repeated:
    """Does one thing again and again, in a thread, until halted."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._halt = threading.Event()
        self.made = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._halt.is_set():
            self._work()
            self.made += 1

    def halt(self) -> int:
        self._halt.set()
        self._thread.join()
        return self.made


def full(uri: str, target: Path) -> None:
    backup.run(uri, target, policy=_COPY)
    shutil.rmtree(target)


def image(uri: str, place: Path, rate: float) -> None:
    with backup.Repository.init(place) as repository:
        repository.backup(uri, rate=rate)
    shutil.rmtree(place)


def restore(kept: Path, place: Path) -> None:
    backup.restore(kept, place)
    shutil.rmtree(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri")
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    uri, place, kept = arguments.uri, arguments.directory, arguments.directory / "kept"
    backup.run(uri, kept, policy=_COPY)
    works: dict[str, Callable[[str], object]] = {
        "full": lambda _: full(uri, place / "target"),
        "image": lambda rate: image(uri, place / "repository", float(rate)),
        "incremental": lambda _: backup.run(uri, kept, policy=_COPY),
        "verify": lambda _: backup.verify(kept),
        "restore": lambda _: restore(kept, place / "restored"),
    }
    under_way: Repeated | None = None
    child.say("ready")
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "halt" and under_way is not None:
            child.say("halted", made=under_way.halt())
            under_way = None
        elif word in works:
            under_way = Repeated(partial(works[word], rest))
            child.say("going")
        else:
            raise ValueError(f"no such command: {line!r}")
    if under_way is not None:
        under_way.halt()


if __name__ == "__main__":
    main()
