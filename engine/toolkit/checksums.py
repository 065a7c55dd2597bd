"""Values with a checksum, and the running digest of all that are there: for states in libraries that check no bytes.

A *seal* is 8 bytes behind a value: its xxh3-64, with that of its key as the seed. Whoever reads a value opens the seal,
so what changed on the disk is found when it is read for use, a value under another's key included.

A *tally* is how many entries there are and the sum of their seals. Each write brings it along, it is stored with the
position, and a walk over everything compares: so an entry that is missing, or there twice, or from another time, is
found too. A single look-up cannot find those: that a key is not there, it has to believe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from xxhash import xxh3_64_digest, xxh3_64_intdigest

from ..errors import Damaged

SEAL = 8
_MASK = (1 << 64) - 1
_TOLD = 64 << 10


class Sealer:
    """Seals and opens the entries of one table.

    Args:
        name: of the table, in messages.
        tag: different for each table of a state, so that an entry of one is none of another: the seed for keys.
        path: of the file, for messages.
    """

    __slots__ = ("_name", "path", "tag")

    def __init__(self, name: str, tag: int, path: Path) -> None:
        self._name = name
        self.tag = tag
        self.path = path

    def sealed(self, key: bytes, value: bytes) -> bytes:
        """A value as it is stored."""
        return value + xxh3_64_digest(value, xxh3_64_intdigest(key, self.tag))

    def opened(self, key: bytes, sealed: bytes) -> bytes:
        """A stored value as it was given. Raises `Damaged`."""
        value = sealed[:-SEAL]
        if xxh3_64_digest(value, xxh3_64_intdigest(key, self.tag)) != sealed[-SEAL:]:
            raise self.damaged(key)
        return value

    def tallied(self, entries: Iterable[tuple[bytes, bytes]], passed: Callable[[int], object] = bool) -> Tally:
        """Open every seal of some entries (key and stored value), and tally them. `passed` is told every 64 KiB or so
        how many bytes went by. Raises `Damaged`."""
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
    """How many entries a table has, and the sum of their seals modulo 2^64. Order plays no part."""

    __slots__ = ("count", "total")

    def __init__(self, count: int = 0, total: int = 0) -> None:
        self.count = count
        self.total = total

    def add(self, sealed: bytes) -> None:
        self.count += 1
        self.total = (self.total + int.from_bytes(sealed[-SEAL:], "big")) & _MASK

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
