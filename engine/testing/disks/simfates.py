"""What a power cut may make of what a simulated disk has not synced: the device profile, as code.

A `Fate` is asked about each pending change in turn. What it may answer is what `docs/crashes.md` assumes of a disk and
a file system, and no more: sectors of 512 bytes are old or new as a whole, whichever of them; changes of one file reach
the disk in any order; a change of names is there or not; what was synced stays.

`power_cuts` gives the disks that a cut at one moment may leave: every one of them if they are few; otherwise some
shapes that have bitten real systems, and some by lot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Protocol, Self, TypeVar

FEW = 64
"""If a disk may be in at most this many states at one moment, all are tried."""


class Fate:
    """What becomes of pending changes in a power cut. The base keeps everything."""

    def file(self, changes: int) -> None:
        """The next file has this many pending changes of contents."""

    def write(self, sectors: int) -> list[bool] | None:
        """Which sectors of a write are kept; None: none of them, and the file has not grown either."""
        return [True] * sectors

    def truncate(self) -> bool:
        return True

    def names(self) -> bool:
        return True


class Dropped(Fate):
    """Nothing pending is kept, except names if `names_kept`, and contents if `data_kept`."""

    def __init__(self, *, data_kept: bool = False, names_kept: bool = False) -> None:
        self._data, self._names = data_kept, names_kept

    def write(self, sectors: int) -> list[bool] | None:
        return [True] * sectors if self._data else None

    def truncate(self) -> bool:
        return self._data

    def names(self) -> bool:
        return self._names


class Torn(Fate):
    """Of each write the sectors that `keep(index, count)` chooses; sizes and names are kept."""

    def __init__(self, keep: Callable[[int, int], bool]) -> None:
        self._keep = keep

    def write(self, sectors: int) -> list[bool] | None:
        return [self._keep(i, sectors) for i in range(sectors)]


class Reordered(Fate):
    """Of the changes of one file those that `keep(index, count)` chooses, whole; all names."""

    def __init__(self, keep: Callable[[int, int], bool]) -> None:
        self._keep = keep
        self._count = self._index = 0

    def file(self, changes: int) -> None:
        self._count, self._index = changes, -1

    def truncate(self) -> bool:
        self._index += 1
        return self._keep(self._index, self._count)

    def write(self, sectors: int) -> list[bool] | None:
        return [True] * sectors if self.truncate() else None


class Drawn(Fate):
    """Everything by lot. `random` may be Hypothesis's, so that a failure shrinks."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def write(self, sectors: int) -> list[bool] | None:
        how = self._random.randrange(5)
        if how == 0:
            return None
        if how == 1:
            return [True] * sectors
        if how == 4:
            kept = self._random.getrandbits(max(1, sectors))
            return [kept >> i & 1 == 1 for i in range(sectors)]
        cut = self._random.randrange(sectors + 1)  # one place shrinks better than a set of sectors
        return [(i < cut) == (how == 2) for i in range(sectors)]

    def truncate(self) -> bool:
        return self._random.randrange(2) == 0

    def names(self) -> bool:
        return self._random.randrange(2) == 0


class Counted(Fate):
    """Everything in turn: `advance` goes on to the next fate, and is False after the last."""

    def __init__(self) -> None:
        self._chosen: list[tuple[int, int]] = []  # which of how many
        self._at = 0

    def advance(self) -> bool:
        self._at = 0
        while self._chosen:
            which, count = self._chosen.pop()
            if which + 1 < count:
                self._chosen.append((which + 1, count))
                return True
        return False

    def _choose(self, count: int) -> int:
        if self._at == len(self._chosen):
            self._chosen.append((0, count))
        self._at += 1
        return self._chosen[self._at - 1][0]

    def write(self, sectors: int) -> list[bool] | None:
        kept = self._choose(1 + (1 << sectors))
        return [(kept - 1) >> i & 1 == 1 for i in range(sectors)] if kept else None

    def truncate(self) -> bool:
        return self._choose(2) == 1

    def names(self) -> bool:
        return self._choose(2) == 1


FATES: dict[str, Callable[[], Fate]] = {
    "all dropped": Dropped,
    "names only": lambda: Dropped(names_kept=True),
    "contents only": lambda: Dropped(data_kept=True),
    "all kept": Fate,
    "first sectors": lambda: Torn(lambda i, n: i < n // 2),
    "last sectors": lambda: Torn(lambda i, n: i >= (n + 1) // 2),
    "later ones only": lambda: Reordered(lambda i, n: i >= n // 2),
    "every second": lambda: Reordered(lambda i, n: i % 2 == 1),
    "sizes only": lambda: Torn(lambda i, n: False),
}
"""The shapes that are tried if there are too many states to try all, the most telling first."""
_ALWAYS = 3


class LosesPower(Protocol):
    """A simulated disk."""

    def breadth(self, bound: int) -> int:
        """How many states a power cut now may leave, counted no further than `bound`."""

    def crashed(self, fate: Fate) -> Self:
        """The disk as a power cut now leaves it."""


DiskT = TypeVar("DiskT", bound=LosesPower)


def power_cuts(disk: DiskT, *, tries: int, salt: int) -> Iterator[DiskT]:
    """Disks as a power cut now may leave `disk`: all of them if they are no more than `FEW`, and `tries` otherwise.

    Some may be equal (`SimDisk.digest` tells). `salt` varies, from moment to moment, which are tried of many.
    """
    if disk.breadth(FEW) <= FEW:
        fate = Counted()
        yield disk.crashed(fate)
        while fate.advance():
            yield disk.crashed(fate)
        return
    shapes = list(FATES.values())
    turned = shapes[_ALWAYS:]
    turned = turned[salt % len(turned) :] + turned[: salt % len(turned)]
    chosen = (shapes[:_ALWAYS] + turned)[:tries]
    for shape in chosen:
        yield disk.crashed(shape())
    random = Random(salt)
    for _ in range(tries - len(chosen)):
        yield disk.crashed(Drawn(random))
