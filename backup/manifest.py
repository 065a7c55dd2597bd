"""The `MANIFEST` document of a target: what its image is, what must be replayed over it, and which runs made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..engine.env import Files
from ..engine.errors import Damaged, InvalidInput
from ..engine.model import document
from ..engine.model.positions import History, Position
from ..engine.store.layout import Generation
from ..replay.files import CopiedFile

MANIFEST_MAGIC, MANIFEST_VERSION = b"HFMANIF\0", 1

Runs = tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the `MANIFEST` document of a target says.

    Attributes:
        target_id: random id of this target; it names it as a slot of the source's log.
        history: the source's, when the image was taken.
        engine, state_format: name and state format of the engine that the image is of.
        image_position: the image holds everything up to here. In the document: `p0`.
        consistent_from: the image is a state only once it is replayed to here. In the document: `p1`.
        moving: whether the bytes may be any mixture of states between these two. If not, they are equal.
        chunk_bytes: bytes that one digest of `files` covers.
        files: the image, file by file.
        created_us: when the image was whole.
        runs: one map for each backup run, oldest first: kind, source, started_us, ended_us, from, to (txids) and more.
        older: the generations whose restore points are kept, oldest first, with what each restores to.
        promoted_us: when the target was opened for writing, or None while it is a backup.
        promoted_branch: id of the branch that was begun then.
        settled: since then a checkpoint has passed `consistent_from`, so the state no longer counts as a copy.
    """

    target_id: bytes
    history: History
    engine: str
    state_format: int
    image_position: Position
    consistent_from: Position
    moving: bool
    chunk_bytes: int
    files: tuple[CopiedFile, ...]
    created_us: int
    runs: Runs = field(default=())
    older: tuple[Mapping[str, Any], ...] = field(default=())
    promoted_us: int | None = None
    promoted_branch: bytes | None = None
    settled: bool = False

    @property
    def noted_end(self) -> Position:
        """How far the log reached when the last run was noted."""
        return Position(*self.runs[-1]["end"]) if self.runs else self.consistent_from

    @property
    def image_bytes(self) -> int:
        return sum(copied.size for copied in self.files)

    @property
    def payloads(self) -> set[int]:
        """The payload versions that the runs have brought."""
        return {version for run in self.runs for version in run.get("payloads", ())}

    def write(self, files: Files, generation: Generation) -> None:
        body = {
            "target_id": self.target_id, "history": self.history.to_wire(), "engine": self.engine,
            "state_format": self.state_format, "p0": list(self.image_position), "p1": list(self.consistent_from),
            "moving": self.moving, "chunk_bytes": self.chunk_bytes,
            "files": [[f.name, f.size, b"".join(f.digests)] for f in self.files],
            "created_us": self.created_us, "runs": list(self.runs),
            "older": [dict(one) for one in self.older], "retired_us": self.promoted_us,
            "retired_branch": self.promoted_branch, "settled": self.settled,
        }
        document.write(files, generation.manifest, MANIFEST_MAGIC, MANIFEST_VERSION, body)

    @classmethod
    def read(cls, files: Files, generation: Generation) -> Manifest | None:
        """The manifest, or None if the generation is not a target's. Raises `Damaged`, `UnsupportedFormat`."""
        path = generation.manifest
        try:
            body = document.read(files, path, MANIFEST_MAGIC, MANIFEST_VERSION)
        except FileNotFoundError:
            return None
        try:
            copied = tuple(CopiedFile(n, s, tuple(d[i : i + 16] for i in range(0, len(d), 16)))
                           for n, s, d in body["files"])
            return cls(body["target_id"], History.from_wire(body["history"]), body["engine"], body["state_format"],
                       Position(*body["p0"]), Position(*body["p1"]), body["moving"], body["chunk_bytes"], copied,
                       body["created_us"], tuple(body["runs"]), tuple(body.get("older", ())),
                       body["retired_us"], body["retired_branch"],
                       body["settled"])
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            raise Damaged(f"lacks or garbles a field: {error}", path=str(path)) from error

    def promote(self, now_us: int, branch_id: bytes) -> Manifest:
        """The manifest of this backup once it is opened for writing as a store of its own."""
        return replace(self, promoted_us=now_us, promoted_branch=branch_id)

    def settle(self) -> Manifest:
        """The manifest once a checkpoint of the store that it became has replaced its image."""
        return replace(self, settled=True, files=())


def with_run(runs: Runs, run: dict[str, Any], most: int) -> Runs:
    """The runs of a manifest and one more. Only the first and the last `most` are kept. Of the others, only the payload
    versions that they brought are remembered."""
    runs = (*runs, run)
    if len(runs) <= most + 1:
        return runs
    first, last = runs[0], runs[-most:]
    gone = {version for r in runs[:-most] for version in r.get("payloads", ())}
    return {**first, "payloads": sorted(gone)}, *last
