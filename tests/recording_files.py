"""A file system that records what is written and synced, and can build what a crash may have left of it.

The bytes really go to disk, in `root`, so that the code under test runs as it does anywhere. Beside that every change
is noted, in order. `after_crash` replays the notes up to a point as a disk might hold them: what was synced is there;
of each later write any piece may be; of each later rename either side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from holdfast.engine.seams import File, Files

Mode = Literal["read", "write", "create"]


@dataclass(frozen=True)
class Event:
    """`data` is what a write wrote; `size` what a truncation left or a reservation took; `to` the new name."""

    kind: Literal["create", "write", "size", "sync", "rename", "unlink", "sync directory"]
    name: str
    offset: int = 0
    data: bytes = b""
    size: int = 0
    to: str = ""


class RecordingFile(File):
    __slots__ = ("_name", "_note")

    def __init__(self, file: File, note: Callable[[Event], None]) -> None:
        super().__init__(file.path, file.fileno())
        self._name = file.path.name
        self._note = note

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        super().pwrite(data, offset)
        self._note(Event("write", self._name, offset=offset, data=bytes(data)))

    def datasync(self) -> None:
        super().datasync()
        self._note(Event("sync", self._name))

    def sync(self) -> None:
        super().sync()
        self._note(Event("sync", self._name))

    def truncate(self, size: int) -> None:
        super().truncate(size)
        self._note(Event("size", self._name, size=size))

    def reserve(self, size: int) -> None:
        super().reserve(size)
        self._note(Event("size", self._name, size=max(size, self.size())))


@dataclass
class RecordingFiles(Files):
    """Files in one directory, `root`; what goes on elsewhere is not recorded. `after_each` runs after every change."""

    root: Path
    events: list[Event] = field(default_factory=list)
    after_each: Callable[[Event], None] | None = None

    def _note(self, event: Event) -> None:
        self.events.append(event)
        if self.after_each is not None:
            self.after_each(event)

    def open(self, path: Path, mode: Mode = "read") -> File:
        file = super().open(path, mode)
        if mode == "read" or path.parent != self.root:
            return file
        recording = RecordingFile(file, self._note)
        if mode == "create":
            self._note(Event("create", path.name))
        return recording

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        if new.parent == self.root:
            self._note(Event("rename", old.name, to=new.name))

    def unlink(self, path: Path, *, missing_ok: bool = False) -> None:
        there = path.exists()
        super().unlink(path, missing_ok=missing_ok)
        if there and path.parent == self.root:
            self._note(Event("unlink", path.name))

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        if path == self.root:
            self._note(Event("sync directory", ""))


Keep = Callable[[bytes], list[tuple[int, int]]]
"""Given an unsynced write, which byte ranges of it reached the disk."""


def after_crash(events: list[Event], keep: Keep, flip: Callable[[], bool]) -> dict[str, bytes]:
    """What the directory may hold after a crash at the end of `events`: names and contents.

    Args:
        keep: chooses what is left of each unsynced write.
        flip: chooses, for each unsynced change of names, whether it is on disk. They reach it in order.
    """
    synced_until: dict[int, int] = {}  # file (by a number of its own) -> index of its last sync
    files: dict[int, list[tuple[int, Event]]] = {}
    names: dict[str, int] = {}
    changes: list[tuple[int, Event, int]] = []  # of names, with the file they name
    names_synced = -1
    for i, event in enumerate(events):
        match event.kind:
            case "create":
                names[event.name] = len(files)
                files[len(files)] = []
                changes.append((i, event, names[event.name]))
            case "write" | "size":
                files[names[event.name]].append((i, event))
            case "sync":
                synced_until[names[event.name]] = i
            case "rename":
                names[event.to] = names.pop(event.name)
                changes.append((i, event, names[event.to]))
            case "unlink":
                changes.append((i, event, names.pop(event.name)))
            case "sync directory":
                names_synced = i
    on_disk: dict[str, int] = {}
    going_on = True
    for i, event, number in changes:
        going_on = going_on and (i < names_synced or flip())
        if going_on:
            if event.kind == "create":
                on_disk[event.name] = number
            else:
                on_disk.pop(event.name, None)
                if event.kind == "rename":
                    on_disk[event.to] = number
    return {name: _content(files[number], synced_until.get(number, -1), keep) for name, number in on_disk.items()}


def _content(events: list[tuple[int, Event]], synced: int, keep: Keep) -> bytes:
    data = bytearray()
    for i, event in events:
        if event.kind == "size":
            data = data[: event.size].ljust(event.size, b"\0")
            continue
        for start, stop in [(0, len(event.data))] if i < synced else keep(event.data):
            at = event.offset + start
            data = data.ljust(at, b"\0")
            data[at : at + stop - start] = event.data[start:stop]
    return bytes(data)
