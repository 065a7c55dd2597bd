"""Values with a checksum, and a running digest of all entries, for states in libraries that have no checksums.

A *seal* is 8 bytes after a value: its xxh3-64, seeded with that of its key. Every read checks the seal. So bytes that
changed on the disk are found when they are read, and so is a value that is under another key.

A *tally* is the number of entries and the sum of their seals. Each write updates it, it is stored with the position,
and a full walk compares. So the walk also finds an entry that is missing, doubled, or from another time. A single
look-up cannot find these: if a key is not there, it must believe that.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from xxhash import xxh3_64_digest, xxh3_64_intdigest

from ..errors import Damaged

SEAL = 8
_MASK = (1 << 64) - 1
_TOLD = 64 << 10


class Sealer:
    """Seals and opens the entries of one table.

    Args:
        name: the table's name, for messages.
        tag: the seed for keys. Use a different one for each table of a state, so that entries cannot change tables.
        path: the file's path, for messages.
    """

    __slots__ = ("_name", "path", "tag")

    def __init__(self, name: str, tag: int, path: Path) -> None:
        self._name = name
        self.tag = tag
        self.path = path

    def sealed(self, key: bytes, value: bytes) -> bytes:
        """The value with its seal, as it is stored. O(value)."""
        return value + xxh3_64_digest(value, xxh3_64_intdigest(key, self.tag))

    def opened(self, key: bytes, sealed: bytes) -> bytes:
        """The value without its seal. Raises `Damaged` if the seal does not match. O(value)."""
        value = sealed[:-SEAL]
        if xxh3_64_digest(value, xxh3_64_intdigest(key, self.tag)) != sealed[-SEAL:]:
            raise self.damaged(key)
        return value

    def tallied(self, entries: Iterable[tuple[bytes, bytes]], passed: Callable[[int], object] = bool) -> Tally:
        """Check the seals of some entries (key, stored value), and tally them. `passed` is called about every 64 KiB
        with the number of bytes since the last call. Raises `Damaged`."""
        tag, digest, seed, number = self.tag, xxh3_64_digest, xxh3_64_intdigest, int.from_bytes
        count = total = size = 0
        for key, sealed in entries:
            seal = sealed[-SEAL:]
            if digest(sealed[:-SEAL], seed(key, tag)) != seal:
                raise self.damaged(key)
            total += number(seal, "big")
            count += 1
            size += len(sealed)
            if size >= _TOLD:
                passed(size)
                size = 0
        return Tally(count, total & _MASK)

    def damaged(self, key: bytes) -> Damaged:
        return Damaged(f"the entry {key.hex()} of {self._name} does not match its checksum", path=str(self.path))


class Tally:
    """The number of entries of a table, and the sum of their seals modulo 2^64. Their order does not matter."""

    __slots__ = ("count", "total")

    def __init__(self, count: int = 0, total: int = 0) -> None:
        self.count = count
        self.total = total

    def add(self, sealed: bytes) -> None:
        self.count += 1
        self.total = (self.total + int.from_bytes(sealed[-SEAL:], "big")) & _MASK

    def add_seals(self, seals: Sequence[bytes]) -> None:
        """As `add` for many, given only the seals."""
        self.count += len(seals)
        self.total = (self.total + sum(struct.unpack(f">{len(seals)}Q", b"".join(seals)))) & _MASK

    def remove(self, sealed: bytes) -> None:
        self.count -= 1
        self.total = (self.total - int.from_bytes(sealed[-SEAL:], "big")) & _MASK

    def copy(self) -> Tally:
        return Tally(self.count, self.total)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tally) and (self.count, self.total) == (other.count, other.total)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Tally({self.count}, {self.total:#x})"
