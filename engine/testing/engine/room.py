"""Checkpoints that find no room on the disk: what they may change, what they leave, and how it goes on."""

from __future__ import annotations

import errno
import gc
import itertools
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import get_args

from ...contract.image import Image
from ...errors import DiskFull, HoldfastError
from ..disks.faulty import FaultyFiles, Kind
from ..disks.quiet import quiet_env
from ..disks.simdisk import SimDisk
from ..disks.simfaults import DiskFault, Injected
from ..support.contract import ABOVE_ENV, Contract, check, scratch
from ..support.driver import Driver
from ..support.leak_detection import collected, descriptors
from ..support.workload import Workload
from .states import look_at_image, read_in_pieces
from .transactions import begun

_LATER = 12
"""Transactions that come after a checkpoint without room, each with other changes."""
_MANY_OPERATIONS = 60
_AGAIN, _PLACES = 6, 3
"""How often a checkpoint fails in one way, and at how many operations of each kind."""
_KINDS: tuple[str, ...] = tuple(kind for kind in get_args(Kind) if kind not in ("pread", "unlink", "remove_tree"))
"""What may need room."""


class RoomChecks(Contract):
    """See the module's text."""

    @check(ABOVE_ENV)
    def test_a_checkpoint_without_room_can_be_made_later(self, work: Workload) -> None:
        """If a checkpoint finds no room, at any operation of the disk, and raises `DiskFull`, it has moved nothing.
        Views go on. Once there is room, an image is that of the position, and stays so, whatever later checkpoints
        write over; and a checkpoint reaches what it is asked for, in the files too. If it raises anything else, the
        engine is not used any more, and is right when it is opened again."""
        for options in (work, work.at_full_size()) if work.tiny else (work,):
            step, number = 1, 0
            while number < (seen := _without_room(options, number)):
                if number == 0:
                    step = max(1, seen // _MANY_OPERATIONS)
                number += step

    @check(ABOVE_ENV)
    def test_a_checkpoint_without_room_leaves_nothing_open(self, work: Workload) -> None:
        """A checkpoint that finds no room, at any kind of operation, leaves no descriptor and no thread, however often
        it is tried again. The disk may be full for a night, and the kit tries all the time."""
        with scratch() as place, collected():
            files = FaultyFiles()
            it = Driver(work, place / "state", quiet_env(files))
            with closing(it):
                begun(it)
                it.checkpoint()
                numbers = itertools.count(60)
                files.counts.clear()
                for _ in range(2):  # the first one after an opening may do more
                    it.commit(work.numbered(next(numbers)))
                    it.checkpoint()
                done = dict(files.counts)
                for kind in _KINDS:
                    for after in range(min(_PLACES, done.get(kind, 0))):
                        _leaves_nothing(it, files, kind, after, numbers)
                it.checkpoint()
                it.compare_state(what="a view after checkpoints that found no room")


def _without_room(work: Workload, number: int) -> int:
    """A checkpoint whose operation with this number finds no room, and what follows. How many operations it began."""
    disk = SimDisk()
    it = Driver(work, Path("/state"), quiet_env(disk))
    begun(it)
    it.checkpoint()
    for operations in work.examples[:3]:
        it.commit(operations)
    it.commit(work.numbered(50))
    before = it.engine.position
    full = Injected(disk, DiskFault(number, "ENOSPC", lasting=False))
    what = f"a checkpoint without room at its operation {number}"
    with ExitStack() as held:
        image: Image | None = None
        try:
            reached = it.engine.checkpoint(it.end)
            seen = full.seen
            assert reached == it.end, f"{what} was to reach {it.end}, and returned {reached}: raise DiskFull"
        except DiskFull:
            seen = full.seen
            assert full.struck, "a checkpoint says DiskFull, and there is room"
            assert it.engine.position == before, (
                f"{what} moved the position to {it.engine.position}: set it when the files are written, not before")
            full.heal()
            image = it.engine.image()
            held.callback(image.close)
            first = read_in_pieces(image)
            with closing(it.recovered(it.copied(first), at=before)) as copy:
                it.compare_state(copy, what=f"a copy of the image after {what}")
        except OSError:  # which poisons the store
            seen = full.seen
            full.heal()
            it.reopen()
        full.heal()
        it.compare_state(what=f"a view after {what}")
        if image is not None:
            for operations in work.examples[3 : 3 + _LATER]:
                it.commit(operations)
        it.checkpoint()
        it.image()
        if image is not None:
            look_at_image(it, image, first, f"made after {what}, and read again after a later one: it may share a file "
                                            "with the state whose end the later one writes over")
    it.engine.close()
    it.engine = it.opened(it.directory)
    assert it.engine.position == it.end, f"{what}, made later, left its files at {it.engine.position}"
    it.compare_state(what=f"the state after {what} that was made later")
    it.close()
    return seen


def _leaves_nothing(it: Driver, files: FaultyFiles, kind: str, after: int, numbers: itertools.count[int]) -> None:
    """Checkpoints that find no room, again and again, once `after` operations of this kind went well."""
    counts: list[tuple[int, int]] = []
    for _ in range(_AGAIN):
        it.commit(it.work.numbered(next(numbers)))
        files.fail(kind, after=after, code=errno.ENOSPC, only=lambda path: it.directory in (path, *path.parents))
        try:
            it.engine.checkpoint(it.end)
            return  # it had room, and may keep what it made open
        except DiskFull:
            pass
        except (OSError, HoldfastError):  # which poisons the store
            files.heal()
            it.reopen()
        finally:
            files.heal()
        gc.collect(0)
        counts.append((len(descriptors()), threading.active_count()))
    for what, first, last in zip(("file descriptors", "threads"), counts[1], counts[-1], strict=True):
        assert last < first + _AGAIN - 2, (
            f"{_AGAIN - 2} checkpoints that found no room at {kind}, after {after} that went well, left "
            f"{last - first} {what} open: close a file in a finally, also if writing to it fails")
