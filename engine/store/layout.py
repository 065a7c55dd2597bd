"""The layout of a directory: the same for a store and for a backup target.

    DIR/
      LOCK               held by whoever writes here: store, backup, compaction, restore
      STORE              the identity: store id and engine (a document)
      CURRENT            the name of the generation in force (a line of text)
      gen-000001/
        MANIFEST         in a backup target only: what the image is and what must be replayed (see `copied_image.py`)
        state/           the engine's durable state, or in a target the image
        log/             segments and attachments, and the list of slots
      RESTORING          while a restore writes over the state here: empty
      member/            in a member of a cluster: its promise and identity
      scratch-…/         in a backup target only: a copy of an image that is being checked

A generation is a state and the log after it. In a live store, checkpoints move the state forward; in a target it is
frozen. A new generation is made under another name, and comes into force when `CURRENT` is durably replaced. The old
one is removed after that. A generation that is not named by anything is garbage.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..env import Files
from ..errors import Damaged, LocksUnsupported, StoreNotFound
from ..model import document
from ..model.positions import ID_BYTES
from ..wal.segment import holds_records
from .reader_leases import DIRECTORY as READERS

STORE_MAGIC, STORE_VERSION = b"HFSTORE\0", 1
_GENERATION = re.compile(r"gen-(\d{6})")
_SCRATCH = re.compile("scratch-[0-9a-f]{16}")


RESTORING = "RESTORING"
"""There while a restore writes over a store in place. Nobody opens what is half old, or makes a new store of it."""

MEMBER = "member"
"""What a member of a cluster keeps of itself. It outlives the store in the same directory, which may be seeded anew."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The paths of one generation."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def manifest(self) -> Path:
        return self.path / "MANIFEST"


def lock_text(owner: str, doubted_s: int) -> str:
    """The text of the lock file: the owner, and whether it doubts the clock."""
    return f"{owner}\n" + (f"doubts the clock by {doubted_s} s\n" if doubted_s else "")


_DOUBTED = re.compile(r"^doubts the clock by (\d{1,15}) s$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Identity:
    """What the `STORE` document says."""

    store_id: bytes
    engine: str
    created_us: int


class Layout:
    """The directory of a store or target."""

    def __init__(self, root: str | os.PathLike[str], files: Files) -> None:
        self.root = files.absolute(root)
        self.files = files

    @property
    def lock_path(self) -> Path:
        return self.root / "LOCK"

    def doubted_s(self) -> int | None:
        """By how many seconds the process that has this store open doubts the clock. None: no process has, or unknown.
        """
        try:
            if not self.files.is_locked(self.lock_path):
                return None
            found = _DOUBTED.search(self.files.read(self.lock_path)[:200].decode("utf-8", "replace"))
        except (OSError, LocksUnsupported):
            return None
        return int(found[1]) if found else 0

    def is_store(self) -> bool:
        """Whether a whole store or target is here."""
        return self.files.exists(self.root / "STORE") and self.files.exists(self.root / "CURRENT")

    def is_half_restored(self) -> bool:
        """Whether a restore that writes over the store here has begun, and has not ended."""
        return self.files.exists(self.root / RESTORING)

    def is_empty(self, *, or_finished: bool = False) -> bool:
        """Whether nothing is here, except perhaps a lock file and the remains of a store that was never finished. A
        store that has lost its `CURRENT` does not count as empty, because its log has records. `or_finished`: a
        complete backup whose run died before it came into force counts as empty too."""
        if not self.files.is_directory(self.root):
            return not self.files.exists(self.root)
        return not self.is_store() and all(self._is_rest(n, or_finished) for n in self.files.list(self.root))

    def _is_rest(self, name: str, or_finished: bool) -> bool:
        if name in {"LOCK", "STORE", "STORE.new", "CURRENT.new", READERS, MEMBER}:
            return True
        if not _GENERATION.fullmatch(name.removesuffix(".partial")):
            return False
        found = Generation(self.root / name)
        if name.endswith(".partial"):
            return True
        if self.files.exists(found.manifest):
            return or_finished
        return not holds_records(self.files, found.log)

    def foreign(self) -> list[str]:
        """The names here that belong neither to a store nor to a target."""
        ours = {"LOCK", "STORE", "STORE.new", "CURRENT", "CURRENT.new", READERS, RESTORING}
        return [n for n in self.files.list(self.root) if n not in ours and not _SCRATCH.fullmatch(n)
                and not _GENERATION.fullmatch(n.removesuffix(".partial"))]

    def clear(self) -> None:
        """Remove everything of a store except the lock file. The caller holds the lock, and knows that nothing here is
        needed."""
        if self.files.exists(self.root / "CURRENT"):  # remove it first: a store cut off half-way must not look whole
            self.files.unlink(self.root / "CURRENT")
            self.files.sync_directory(self.root)
        foreign = self.foreign()
        for name in self.files.list(self.root):
            path = self.root / name
            if name in foreign:
                continue
            if self.files.is_directory(path):
                self.files.remove_tree(path)
            elif path != self.lock_path:
                self.files.unlink(path)

    def sync_names(self, generation: Generation) -> None:
        """Make the names here and in a generation durable, before anything is done that depends on them. A process that
        was killed, or whose disk failed, may have left names in memory only. If, for instance, log was then pruned
        because of a checkpoint, a power cut could undo the checkpoint's rename when the log is already gone."""
        with contextlib.suppress(PermissionError):  # we did not make a parent that we may not read
            self.files.sync_directory(self.root.parent)
        for path in (self.root, generation.path, generation.state, generation.log):
            self.files.sync_directory(path)

    def read_identity(self) -> Identity:
        """The `STORE` document. Raises `StoreNotFound` or `Damaged`."""
        path = self.root / "STORE"
        try:
            body = document.read(self.files, path, STORE_MAGIC, STORE_VERSION)
            identity = Identity(body["store_id"], body["engine"], body["created_us"])
        except (FileNotFoundError, NotADirectoryError) as error:
            if self.files.exists(self.root / "CURRENT"):  # it is written last, so STORE was there
                raise Damaged("is missing", path=str(path)) from error
            raise StoreNotFound(f"no store in {self.root}") from error
        except KeyError as error:
            raise Damaged(f"lacks the field {error}", path=str(path)) from error
        if len(identity.store_id) != ID_BYTES:
            raise Damaged("has a store id of the wrong length", path=str(path))
        return identity

    def write_identity(self, identity: Identity) -> None:
        """Write the `STORE` document, durably. Raises `DiskFull`."""
        document.write(self.files, self.root / "STORE", STORE_MAGIC, STORE_VERSION,
                       {"store_id": identity.store_id, "engine": identity.engine, "created_us": identity.created_us})

    def generation(self, number: int) -> Generation:
        """The paths of the generation with this number. Creates nothing."""
        return Generation(self.root / f"gen-{number:06d}")

    def current(self) -> Generation:
        """The generation in force. Raises `StoreNotFound` or `Damaged`."""
        path = self.root / "CURRENT"
        try:
            name = self.files.read(path).decode("ascii", "replace").strip()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreNotFound(f"no store in {self.root}: none was finished here, or its CURRENT is gone") from error
        if not _GENERATION.fullmatch(name):
            raise Damaged(f"names {name!r}, which is not a generation", path=str(path), offset=0)
        generation = Generation(self.root / name)
        if not self.files.is_directory(generation.path):
            raise Damaged(f"names {name}, which is not there", path=str(path), offset=0)
        return generation

    def generations(self, *, partial: bool = False) -> list[Generation]:
        """The generations that are here, by number; with `partial`, those that were never finished instead."""
        suffix = ".partial" if partial else ""
        return [Generation(self.root / n) for n in self.files.list(self.root)
                if n.endswith(suffix) and _GENERATION.fullmatch(n.removesuffix(suffix))]

    def next_generation(self) -> Generation:
        """The paths for a new generation, numbered after all that are here. Creates nothing."""
        numbers = [0]
        if self.files.is_directory(self.root):
            numbers += [int(m[1]) for n in self.files.list(self.root) if (m := _GENERATION.match(n))]
        return self.generation(max(numbers) + 1)

    def switch(self, generation: Generation) -> None:
        """Durably bring a generation into force. It must be complete and durable."""
        self.files.write_durably(self.root / "CURRENT", f"{generation.name}\n".encode())

    def scratch(self, number: bytes) -> Path:
        """The path for a scratch copy. `number`: 8 random bytes that make it unique. Creates nothing."""
        return self.root / f"scratch-{number.hex()}"

    def sweep_scratch(self) -> None:
        """Remove scratch copies whose process died. The caller holds the lock, so none is in use."""
        for name in self.files.list(self.root):
            if _SCRATCH.fullmatch(name):
                self.files.remove_tree(self.root / name)

    def sweep(self, keep: Collection[str] = ()) -> list[str]:
        """Remove scratch copies, and generations that are neither in force nor in `keep`. The caller holds the lock.
        Returns the names of these generations."""
        self.sweep_scratch()
        current = self.current().name
        rubbish = [n for n in self.files.list(self.root)
                   if _GENERATION.fullmatch(n.removesuffix(".partial")) and n != current and n not in keep]
        for name in rubbish:
            self.files.remove_tree(self.root / name)
        return rubbish


def bring_into_force(layout: Layout, partial: Generation) -> Generation:
    """Give a whole, durable generation its final name, and switch `CURRENT` to it."""
    files = layout.files
    generation = Generation(partial.path.with_name(partial.name.removesuffix(".partial")))
    files.rename(partial.path, generation.path)
    files.sync_directory(layout.root)
    layout.switch(generation)
    return generation
