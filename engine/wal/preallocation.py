"""Room for the next segment, made in advance: a file that is zero-filled, synced and open.

`make` is slow, so call it without the lock for appending, so that only threads that need the room wait for it. `take`
is called under that lock, and waits for nothing. If another thread takes the room between the two, call `make` again.

The first segment after an opening is small, and each one after it is twice as large as the one before, up to the size
that was set. So a store that is seldom written to stays small, and a busy one soon begins few segments.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..env import Env, File
from ..errors import RolledBack
from .segment import allocate

SPARE = re.compile(r"spare-([0-9]{1,18})\.seg")
_FIRST = 512 << 10
"""Bytes of the first segment after an opening."""


class Room(NamedTuple):
    """An open file for a segment, its path until it becomes one, and its capacity in bytes."""

    file: File
    path: Path
    capacity: int


class RoomNeeded(Exception):
    """The next segment needs room of `capacity` bytes, and there is none yet. Make it, then ask again."""

    def __init__(self, capacity: int) -> None:
        super().__init__(f"{capacity} bytes")
        self.capacity = capacity


class Rooms:
    """The room of one log: for an ordinary segment (the *spare*), and for a segment that must hold more.

    Attributes:
        ordinary: how large an ordinary segment would be now, bytes.
    """

    def __init__(self, directory: Path, *, segment_bytes: int, preallocate: bool, env: Env) -> None:
        """`segment_bytes`: of an ordinary segment, at most. `preallocate`: if false, files are only created, grow as
        they are written, and may all be of that size."""
        self._directory = directory
        self._most = segment_bytes
        self.ordinary = min(segment_bytes, _FIRST) if preallocate else segment_bytes
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
        """Reuse a spare file that an earlier opening made, or remove it. It is good only if it was never written to:
        all zeros, and large enough. It was synced before it got its name."""
        file = self._files.open(path, "write")
        match, size = SPARE.fullmatch(path.name), file.size()
        if (self.wants_spare and match is not None and self.ordinary <= size <= self._most
                and not any(file.pread(65536, 0))):
            self._spare = Room(file, path, size)
            self._number = int(match[1])
        else:
            file.close()
            self._files.unlink(path)

    def make(self, capacity: int) -> None:
        """Make room of at least `capacity` bytes, unless there is some; 0: the spare. Slow: O(capacity). From any
        thread.

        Raises:
            DiskFull, DirectoryMoved, OSError: nothing is left of the attempt.
            RolledBack: `end` was called.
        """
        with self._making:
            if self._ended:
                raise RolledBack("the store was closed meanwhile")
            spare, large = self._spare, self._large
            ordinary = spare is None and capacity <= self.ordinary
            if not ordinary:
                if any(room is not None and room.capacity >= capacity for room in (spare, large)):
                    return
                if large is not None:  # made for a large record that was not logged in the end
                    self._large = None
                    large.file.close()
                    self._files.unlink(large.path, missing_ok=True)
            capacity = max(capacity, self.ordinary)
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
        """Room of at least `capacity` bytes, which the caller then owns; None if there is none: call `make`. By one
        thread at a time. `make` never replaces a room that fits, so the check and the take need no lock."""
        spare, large = self._spare, self._large
        if spare is not None and spare.capacity >= capacity:
            self._spare, room = None, spare
        elif large is not None and large.capacity >= capacity:
            self._large, room = None, large
        else:
            return None
        self.ordinary = min(2 * self.ordinary, self._most)
        return room

    def end(self) -> None:
        """Make no more room. Waits for a thread in `make`, because another process may own the directory next."""
        with self._making:
            self._ended = True

    def abandon(self) -> None:
        """Close the files, and leave them for the next opening."""
        for room in (self._spare, self._large):
            if room is not None:
                room.file.close()
        self._spare = self._large = None
