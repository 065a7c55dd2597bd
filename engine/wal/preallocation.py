"""Room for the next segment, before anybody needs it: a file that is zero-filled, synced and open.

To `make` some is slow, and nobody must wait for it who does not need it himself; so it is done without the lock under
which the log is appended to. To `take` it is done under that lock, and waits for nothing. Between the two, somebody
else may have taken it; then it is made again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..env import Env, File
from ..errors import RolledBack
from .segment import allocate

SPARE = re.compile(r"spare-([0-9]{1,18})\.seg")


class Room(NamedTuple):
    """An open file for a segment, its path until it becomes one, and how much fits in."""

    file: File
    path: Path
    capacity: int


class RoomNeeded(Exception):
    """The next segment needs room of `capacity` bytes, and there is none yet. It is to be made, and asked for again."""

    def __init__(self, capacity: int) -> None:
        super().__init__(f"{capacity} bytes")
        self.capacity = capacity


class Rooms:
    """Of one log: room for an ordinary segment (the *spare*), and for the large one that a large record gets."""

    def __init__(self, directory: Path, *, segment_bytes: int, preallocate: bool, env: Env) -> None:
        """`preallocate`: without, files are only made and opened, and grow as they are written to."""
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._preallocate = preallocate
        self._files = env.files
        self._making = env.scheduler.lock()
        self._spare: Room | None = None
        self._large: Room | None = None
        self._number = 0
        self._ended = False

    @property
    def wants_spare(self) -> bool:
        return self._preallocate and self._spare is None

    def at(self, path: Path) -> None:
        """Take over what an earlier opening has made, or remove it. It is good only while it was never written to: zero
        and whole; it was synced before it got its name."""
        file = self._files.open(path, "write")
        match = SPARE.fullmatch(path.name)
        if (self.wants_spare and match is not None and file.size() == self._segment_bytes
                and not any(file.pread(65536, 0))):
            self._spare = Room(file, path, self._segment_bytes)
            self._number = int(match[1])
        else:
            file.close()
            self._files.unlink(path)

    def make(self, capacity: int) -> None:
        """See to it that there is room of at least `capacity` bytes. By any thread.

        Raises:
            DiskFull, DirectoryMoved, OSError: nothing is left of the attempt.
            RolledBack: after `end`.
        """
        with self._making:
            if self._ended:
                raise RolledBack("the store was closed meanwhile")
            ordinary = capacity <= self._segment_bytes
            there = self._spare if ordinary else self._large
            if there is not None and there.capacity >= capacity:
                return
            if there is not None:  # for a record that was refused in the end
                self._large = None
                there.file.close()
                self._files.unlink(there.path, missing_ok=True)
            capacity = max(capacity, self._segment_bytes)
            path = self._directory / f"spare-{self._number + 1}.seg"
            if self._preallocate:
                file = allocate(self._files, path, capacity)
            else:
                path = path.with_suffix(".new")
                self._files.unlink(path, missing_ok=True)
                file = self._files.open(path, "create")
            self._number += 1
            room = Room(file, path, capacity)
            if ordinary:
                self._spare = room
            else:
                self._large = room

    def take(self, capacity: int) -> Room | None:
        """Room of at least `capacity` bytes, which is the caller's from here on; None: make some. By one thread at a
        time. `make` puts some only where there is none, so between looking and taking nothing changes."""
        if capacity <= self._segment_bytes:
            room = self._spare
            if room is not None:
                self._spare = None
        else:
            room = self._large
            if room is not None and room.capacity < capacity:
                return None
            self._large = None
        return room

    def end(self) -> None:
        """From here on none is made. Waits for who makes some: another process may have the directory next."""
        with self._making:
            self._ended = True

    def abandon(self) -> None:
        """Close the files. They stay for the next opening."""
        for room in (self._spare, self._large):
            if room is not None:
                room.file.close()
        self._spare = self._large = None
