"""What a member had and its cluster does not: set aside in readable form before it is removed.

    DIR/member/branched/
      5-11-20-8c1f93ab/             transactions 11 to 20, of which the first is of epoch 5, and the last one's chain
        records.jsonl               one object for each, oldest first
        NAME.att                    the data of a bulk load among them
      5-21-30-02e4d0c1-published/   the same; this member had shown them, so it had *branched*

Transactions that the cluster never published are cut in any fail-over: whoever began them got `OutcomeUnknown`. Those
that were published can only be lost after a forced promotion, or with a floor of one.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...engine.env import File, Files
from ...engine.model.records import Record
from .state import StoredState

BranchPolicy = Literal["keep_all", "keep_last", "keep_none"]
"""Keep what is set aside, keep the last of it, or keep only the numbers and chains."""

DIRECTORY, RECORDS, PARTIAL, PUBLISHED = "branched", "records.jsonl", "partial", "published"
WRITE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """What is set aside in one directory. `published`: this member had shown it."""

    name: str
    first: int
    last: int
    published: bool


def kept(state: StoredState, files: Files) -> list[Kept]:
    """What is set aside in a member's directory, by name. O(directories there)."""
    place, found = state.directory / DIRECTORY, []
    if files.exists(place):
        for name in sorted(files.list(place)):
            parts = name.split("-")
            if len(parts) in (4, 5) and all(part.isdigit() for part in parts[:3]):
                found.append(Kept(name, int(parts[1]), int(parts[2]), parts[4:] == [PUBLISHED]))
    return found


class SetAside:
    """Sets records aside, in order. One that was begun and not finished is replaced by the next."""

    def __init__(self, state: StoredState, files: Files, policy: BranchPolicy, attachment: Callable[[str], Path], *,
                 published: bool) -> None:
        """
        Args:
            state, files: of the member.
            policy: what to keep.
            attachment: where the file of an attachment is. It is linked, or copied if it is on another file system.
            published: the records were shown.
        """
        self._place = state.directory / DIRECTORY
        self._files = files
        self._policy = policy
        self._attachment = attachment
        self._published = published
        self._partial = self._place / PARTIAL
        self._first: Record | None = None
        self._last: Record | None = None
        self._file: File | None = None
        self._lines: list[bytes] = []
        self._waiting = self._written = 0

    def add(self, record: Record) -> None:
        """Add the next record. O(its bytes)."""
        if self._file is None:
            self._files.make_directory(self._place)
            self._files.remove_tree(self._partial)
            self._files.make_directory(self._partial)
            self._file = self._files.open(self._partial / RECORDS, "create")
            self._first = record
        line = {"txid": record.txid, "epoch": record.epoch, "time_us": record.time_us, "chain": record.chain.hex()}
        if self._policy != "keep_none":
            line |= {"payload_version": record.payload_version, "payload": b64encode(record.payload).decode(),
                     "attachment": record.attachment and record.attachment.name}
            if record.attachment is not None:
                self._keep_attachment(record.attachment.name)
        self._lines.append(json.dumps(line).encode() + b"\n")
        self._waiting += len(self._lines[-1])
        self._last = record
        if self._waiting >= WRITE_BYTES:
            self._write()

    def _keep_attachment(self, name: str) -> None:
        try:
            self._files.link(self._attachment(name), self._partial / name)
        except OSError:
            self._files.copy_file(self._attachment(name), self._partial / name, durable=True)

    def _write(self) -> None:
        assert self._file is not None
        data = b"".join(self._lines)
        self._file.pwrite(data, self._written)
        self._written += len(data)
        self._lines, self._waiting = [], 0

    def finish(self) -> Path | None:
        """Durably end it, and apply `keep_last`. Returns where it is; None if there was no record."""
        first, last, file = self._first, self._last, self._file
        if first is None or last is None or file is None:
            return None
        self._write()
        file.sync()
        self.close()
        files = self._files
        files.sync_directory(self._partial)
        name = f"{first.epoch}-{first.txid}-{last.txid}-{last.chain.hex()[:8]}"
        if self._published:
            name = f"{name}-{PUBLISHED}"
        files.remove_tree(self._place / name)  # the same records, from an attempt that a crash ended later
        files.rename(self._partial, self._place / name)
        files.sync_directory(self._place)
        if self._policy == "keep_last":
            for other in files.list(self._place):
                if other != name:
                    files.remove_tree(self._place / other)
        return self._place / name

    def close(self) -> None:
        """Close the file, finished or not."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
