"""Full backups in a separate process, one after the other, until they are stopped.

`go` starts them, and answers `going` once the first is running. `halt` waits for the one that runs to end, and answers
`halted` with their number. Each goes into a new directory below the given one, which is removed at once. The copy is
not checked: what is measured is the cost of copying for the store that is copied.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from pathlib import Path

from .. import backup
from . import child


class Backups:
    """Full backups in a thread, until halted."""

    def __init__(self, uri: str, directory: Path) -> None:
        self._uri, self._directory = uri, directory
        self._halt = threading.Event()
        self.made = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        target = self._directory / "target"
        while not self._halt.is_set():
            backup.run(self._uri, target, policy=backup.Policy(verify=False))
            shutil.rmtree(target)
            self.made += 1

    def halt(self) -> int:
        self._halt.set()
        self._thread.join()
        return self.made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri")
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    under_way: Backups | None = None
    child.say("ready")
    for line in sys.stdin:
        if line.strip() == "go":
            under_way = Backups(arguments.uri, arguments.directory)
            child.say("going")
        elif under_way is not None:
            child.say("halted", backups=under_way.halt())
            under_way = None
    if under_way is not None:
        under_way.halt()


if __name__ == "__main__":
    main()
