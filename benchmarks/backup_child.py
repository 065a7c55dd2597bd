"""Backups in a separate process, one after the other, until they are stopped.

`full` starts full backups, each into a new directory below the given one. `image` starts images into new repositories
there, at the bytes a second that follow the word. What they made is removed when they are halted, since removing a
large file holds up whoever syncs on its file system. `incremental`, `verify` and `restore` work
on one backup, made before this says `ready`. Each answers `going` once the first runs. `halt` waits for the one that
runs to end, and answers `halted` with their number. Full copies are not checked: what is measured is the cost of
copying for the store that is copied.
"""

from __future__ import annotations

import argparse
import itertools
import os
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


def image(uri: str, place: Path, rate: float) -> None:
    with backup.Repository.init(place) as repository:
        repository.backup(uri, rate=rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri")
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    place: Path = arguments.directory
    uri, kept, made = arguments.uri, place / "kept", place / "made"
    backup.run(uri, kept, policy=_COPY)
    numbers = itertools.count()

    def fresh() -> Path:
        return made / str(next(numbers))

    works: dict[str, Callable[[str], object]] = {
        "full": lambda _: backup.run(uri, fresh(), policy=_COPY),
        "image": lambda rate: image(uri, fresh(), float(rate)),
        "incremental": lambda _: backup.run(uri, kept, policy=_COPY),
        "verify": lambda _: backup.verify(kept),
        "restore": lambda _: backup.restore(kept, fresh()),
    }
    under_way: Repeated | None = None
    child.say("ready")
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "halt" and under_way is not None:
            count = under_way.halt()
            shutil.rmtree(made, ignore_errors=True)
            os.sync()
            child.say("halted", made=count)
            under_way = None
        elif word in works:
            made.mkdir(exist_ok=True)
            under_way = Repeated(partial(works[word], rest))
            child.say("going")
        else:
            raise ValueError(f"no such command: {line!r}")
    if under_way is not None:
        under_way.halt()


if __name__ == "__main__":
    main()
