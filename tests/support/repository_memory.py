"""One verb of a repository in a process of its own, which prints how many bytes it held at most. The image is as large
as asked for: it comes from a source that makes its bytes up, so that no store takes memory. Storage is slow, so that
what waits for it shows.

What Python's allocator was asked for is counted, and not what the system gave: how much of what is free an allocator
keeps is chance.
"""

from __future__ import annotations

import random
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

from holdfast.backup import Keep, Repository
from holdfast.backup.repository.copying import copy
from holdfast.backup.repository.restoring import tree_of, write_files
from holdfast.backup.repository.storage import url
from holdfast.backup.repository.storage.local import LocalObjectStore
from holdfast.engine.contract.image import ImageFile
from holdfast.engine.env import REAL
from holdfast.engine.model.positions import Branch, History, Position
from holdfast.engine.model.records import Record
from holdfast.engine.source.interface import CHUNK_BYTES, Confirmation, Grant, SlotState, Source, SourceInfo

BYTES = random.Random(0).randbytes(2 * CHUNK_BYTES)
VERBS = ("backup", "again", "restore", "verify", "copy", "expire")
START = Position(0, bytes(16))
HISTORY = History(b"\1" * 16, (Branch(b"\2" * 16, START),))


class MadeUp(Source):
    """A file of random bytes. With `changed`, every hundredth chunk has others."""

    def __init__(self, size: int, *, changed: bool = False) -> None:
        self.size, self.changed = size, changed

    def info(self) -> SourceInfo:
        return SourceInfo(instance="ab" * 16, history=HISTORY, engine="memory", state_format=1, payload_version=1,
                          durable=START, published=START, readable=START, log_base=START, complete_until_us=1,
                          path="made up")

    def chain_at(self, txid: int) -> bytes:
        return START.chain

    def lease(self, owner: str, *, image: bool, after: Position | None = None, ttl: float = 60.0) -> Grant:
        return Grant(id="cd" * 16, instance="ab" * 16, ttl=600.0, position=START, image_id="cd" * 16,
                     files=(ImageFile("data", self.size),))

    def renew(self, lease_id: str) -> None:
        pass

    def release(self, lease_id: str) -> None:
        pass

    def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        number = offset // CHUNK_BYTES
        start = (number * 7919 + (self.changed and number % 100 == 0)) % CHUNK_BYTES  # so no two have a block in common
        return BYTES[start : start + length]

    def confirm(self, lease_id: str) -> Confirmation:
        return Confirmation(consistent_from=START, published=START, complete_until_us=1)

    def read_log(self, lease_id: str, after: Position, upto: int) -> Iterator[Record]:
        return iter(())

    def read_attachment(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def register(self, slot_id: str, name: str, position: Position) -> None:
        pass

    def slots(self) -> list[SlotState]:
        return []

    def drop(self, slot_id: str) -> None:
        pass

    def close(self) -> None:
        pass


def run(verb: str, place: Path, size: int) -> None:
    if verb == "copy":
        copy(place / "repo", place / "copy")
        return
    with Repository.open(place / "repo") as repository:
        if verb in ("backup", "again"):
            repository.backup(MadeUp(size, changed=verb == "again"))
        elif verb == "restore":
            state = repository._archive().state
            tree = tree_of(repository._store, repository._seal, next(reversed(state.images.values())), REAL)
            write_files(tree, place / "restored", REAL, lambda stage, done, total: None)
        elif verb == "verify":
            assert not repository.verify().damaged
        else:
            repository.expire(Keep(last=1, points="none"))


class Slow(LocalObjectStore):
    """Takes 40 MB in a second from each thread."""

    def put(self, name: str, data: bytes) -> None:
        time.sleep(len(data) / 40e6)
        super().put(name, data)


def main(arguments: Sequence[str]) -> None:
    verb, place, size = arguments[0], Path(arguments[1]), int(arguments[2])
    url.LocalObjectStore = Slow  # type: ignore[attr-defined]
    tracemalloc.start()
    run(verb, place, size)
    print(tracemalloc.get_traced_memory()[1])


if __name__ == "__main__":
    main(sys.argv[1:])
