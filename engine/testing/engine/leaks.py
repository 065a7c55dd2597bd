"""What an engine takes and must give back: memory, descriptors, threads, files."""

from __future__ import annotations

import fnmatch
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...contract.engine import Context, Engine
from ...model.positions import ID_BYTES
from ..support.contract import Contract, check, scratch
from ..support.crash_images import copy_running, read_image, tree
from ..support.driver import Driver, driven
from ..support.growth import Life
from ..support.interleave import at_lines
from ..support.leak_detection import Leftovers, Memory, collected, descriptors, memory_in_use
from ..support.not_tried import not_tried
from ..support.workload import Operation, Workload
from .transactions import begun

_TIMES, _ROUNDS, _CHANGES = 40, 10, 7
_LEAKED_IN_C, _LEAKED_PAGES = 1 << 10, 16 << 10
"""Bytes that each call may leave: of what the C library counts, and of what the system does. A call reads all of a
small state, which may be a hundred queries of a library. DuckDB 2.0.1 leaves some bytes behind for each, which is not
the engine's doing. A view that is kept takes more."""
_CRASHES = 12
_LINES = 2000
"""Of a checkpoint that are looked at."""
_LEFT = 6
"""Files that crashed checkpoints may have left, all together."""
_WAIT_S = 0.5
_NOISE = bytes(range(7, 207))


class LeakChecks(Contract):
    """See the module's text."""

    @check()
    def test_what_is_closed_gives_its_memory_back(self, work: Workload) -> None:
        """Views that were read and closed, transactions that were dropped, images that were closed, and transactions
        that were checkpointed leave no memory behind, however many there are."""
        with scratch() as place, collected(), ExitStack() as opened:
            life = Life(work, place / "state")
            opened.callback(life.close)
            changes = itertools.cycle([work.numbered(0), *work.examples[:_CHANGES]])
            for _ in range(3 * _CHANGES):
                _checkpointed(life, next(changes))
            doing: dict[str, tuple[bool, Callable[[], object]]] = {
                "a view that was read and closed": (True, partial(_read, life, work)),
                "a transaction that was dropped": (True, lambda: life.roll_back(next(changes))),
                "an image that was closed": (True, life.image),
                "a view that was closed, with a transaction and a checkpoint meanwhile,":
                    (False, lambda: _beside(life, next(changes)))}
            for what, (changes_nothing, call) in doing.items():
                _gives_back(life, what, call, in_c=changes_nothing)

    @check()
    def test_a_refused_opening_leaves_nothing(self, work: Workload) -> None:
        """If an opening is refused, because a file is missing or damaged, or the state is of another format or of
        another store, it leaves no descriptor and no thread."""
        with driven(work) as it, collected():
            begun(it)
            it.checkpoint()
            it.close()
            place = it.directory.with_name("spoilt")
            for what, spoil, opened in _spoilings(it):
                for how in ({}, {"read_only": True}, {"at": it.end}):
                    shutil.copytree(it.directory, place)
                    spoil(place)
                    before = Leftovers()
                    with suppress(Exception):  # which one is for other checks
                        opened(place, **how).close()
                    left = before.new(_WAIT_S) if before.some else []
                    assert not left, f"open() of a state with {what} was refused or closed, and left {', '.join(left)}"
                    shutil.rmtree(place)

    @check()
    def test_crashed_checkpoints_leave_no_files_behind(self, work: Workload) -> None:
        """What a crash in the middle of a checkpoint leaves does not stay for ever: an opening removes it, or a
        checkpoint writes over it. After crashes at many points of checkpoints there are hardly more files than after
        the same transactions without a crash."""
        with driven(work) as twin:
            begun(twin)
            for number in range(99, 100 + _CRASHES):
                twin.commit(work.numbered(number))
                twin.checkpoint()
            twin.reopen()
            few = tree(twin.directory)
        with driven(work) as it:
            begun(it)
            it.checkpoint()
            it.commit(work.numbered(99))
            points = _worst_points(it)
            it.reopen()
            for crash, line in enumerate(points):
                it.commit(work.numbered(100 + crash))
                image = it.directory.with_name(f"crash-{crash}")
                with at_lines({line}, partial(copy_running, it.directory, image)):
                    it.checkpoint()
                if image.exists():
                    it.close()
                    it.directory = image
                    it.engine, it.is_open = it.recovered(image), True
            it.checkpoint()
            it.reopen()
            it.compare_state(what=f"a view after {_CRASHES} crashes in checkpoints")
            many = tree(it.directory)
            new = sorted(many.keys() - few.keys())
            assert len(many) < len(few) + _LEFT, (
                f"{_CRASHES} crashes, each in a checkpoint, left {len(many) - len(few)} files that nobody removes, "
                f"{', '.join(new[:4])} among them: remove on opening what a checkpoint may have left")

    @check()
    def test_no_descriptor_goes_to_other_programs(self, work: Workload) -> None:
        """No descriptor that the engine opens is inheritable. A program that the application starts would hold the
        engine's files open, and their locks, when the store is closed. What a library opens so is told in the
        report."""
        before = descriptors()
        with driven(work) as it:
            begun(it)
            it.checkpoint()
            it.commit(work.numbered(10))
            with it.engine.view() as view, closing(it.engine.image()) as image:
                it.compare(view)
                read_image(image)
                inherited = [what for fd, what in descriptors().items() if before.get(fd) != what and _inheritable(fd)]
            if inherited and not work.above_env:
                not_tried(f"whether programs that are started can do harm with {Path(inherited[0]).name}",
                          "they inherit the descriptor: a library may open its files so, and the suite cannot tell")
            else:
                assert not inherited, (f"the descriptor of {inherited[0]} is inheritable, so programs that are started "
                                       "have it too: open files as open() and os.open() do, with O_CLOEXEC")

    @check()
    def test_closing_again_closes_nothing_of_others(self, work: Workload) -> None:
        """A view, an image and an engine that are closed again do not close what the application has opened meanwhile,
        which has the numbers of their descriptors now."""
        with driven(work) as it:
            begun(it)
            it.checkpoint()
            it.close()
            before = descriptors()
            it.engine, it.is_open = it.opened(it.directory), True
            view, image = it.engine.view(), it.engine.image()
            it.compare(view)
            read_image(image)
            theirs = [fd for fd, what in descriptors().items() if before.get(fd) != what]
            closing_again = {"view": view.close, "image": image.close, "engine": it.engine.close}
            for close in closing_again.values():
                close()
            it.is_open = False
            ours = _in_the_place_of(theirs)
            try:
                for what, close in closing_again.items():
                    with suppress(Exception):  # whether it may be called again is for the engine to say
                        close()
                    gone = [fd for fd, file in ours.items() if _file(fd) != file]
                    assert not gone, (f"the {what} was closed again, and that closed descriptor {gone[0]}, which was "
                                      "somebody else's by then: forget a descriptor when it is closed")
            finally:
                for fd in ours:
                    with suppress(OSError):
                        os.close(fd)

    @check()
    def test_an_image_names_all_that_a_copy_needs(self, work: Workload) -> None:
        """The files that an image names are enough to open the state. Files in the state's directory that it does not
        name are told in the report: no copy has them."""
        with driven(work) as it:
            begun(it)
            it.checkpoint()
            named, position = it.image(), it.engine.position
            it.close()
            others = sorted(tree(it.directory).keys() - named.keys())
            try:
                copy = it.opened(it.copied(named), at=position)
            except Exception as error:
                raise AssertionError(f"a copy of what the image names, {', '.join(named)}, does not open: {error!r}. "
                                     f"The directory also has {', '.join(others) or 'nothing'}") from error
            with closing(copy):
                it.feed(copy, it.records[position.txid :])
                it.compare_state(copy, what="a copy of the files that the image names")
            if others:
                more = f" and {len(others) - 4} more" if len(others) > 4 else ""
                not_tried(f"the files {', '.join(others[:4])}{more} of the state's directory",
                          "an image does not name them, so no copy has them: the engine must be able to do without")


def _worst_points(it: Driver) -> list[int]:
    """Lines of a checkpoint at which there are more files than at others, so that a crash there may leave some; all
    over it, if there are always as many."""
    files: list[int] = []
    with at_lines(range(_LINES), lambda: files.append(len(os.listdir(it.directory)))):
        it.checkpoint()
    most = [line for line, there in enumerate(files) if there == max(files)]
    return [most[len(most) * (2 * crash + 1) // (2 * _CRASHES)] for crash in range(_CRASHES)]


def _read(life: Life, work: Workload) -> None:
    with life.engine.view() as view:
        work.content(view)
        view.digest()


def _beside(life: Life, operations: list[Operation]) -> None:
    with life.engine.view() as view:
        _checkpointed(life, operations)
        view.digest()


def _checkpointed(life: Life, operations: list[Operation]) -> None:
    life.commit(operations)
    life.checkpoint()


def _gives_back(life: Life, what: str, call: Callable[[], object], *, in_c: bool) -> None:
    """Raises `AssertionError` if memory grows with each call, round after round: a cache that fills up, or that is
    tidied now and then, does not. `in_c`: not only Python's objects."""
    for _ in range(_TIMES // 2):
        call()
    before, large = memory_in_use(), life.size
    for _ in range(_ROUNDS):
        for _ in range(_TIMES):
            call()
        after, larger = memory_in_use(), life.size
        stays = Memory(_TIMES // 2 + max(0, larger - large) // 4, _LEAKED_IN_C * _TIMES, _LEAKED_PAGES * _TIMES)
        grown = Memory(*(now - then for now, then in zip(after, before, strict=True)))
        if grown.objects <= stays.objects and not (in_c and (
                grown.library > stays.library or grown.process > stays.process)):
            return
        before, large = after, larger
    left = (f"{grown.objects / _TIMES:,.1f} objects" if grown.objects > stays.objects else
            f"{max(grown.library, grown.process) / _TIMES:,.0f} bytes")
    raise AssertionError(f"{what} leaves {left} in memory each time, {_ROUNDS * _TIMES} times: something still holds "
                         "what was closed")


Opened = Callable[..., Engine[Any, Any]]


def _spoilings(it: Driver) -> Iterator[tuple[str, Callable[[Path], object], Opened]]:
    """What is wrong with a state, how it is made so, and how it is opened."""
    engine, context = it.work.engine, it.context

    def opening(kind: type[Engine[Any, Any]], given: Context) -> Opened:
        return lambda place, **how: kind.open(place, given, **how)

    usual = opening(engine, context)
    other: Any = type("Other", (engine,), {"state_format": engine.state_format + 1})
    yield "another format", lambda place: None, opening(other, context)
    owned = replace(context, store_id=b"\1" * ID_BYTES)
    yield "another store's id", partial(_remade, it, owned), opening(engine, replace(owned, store_id=b"\2" * ID_BYTES))
    yield "no files", _emptied, usual
    for name in list(tree(it.directory))[:6]:
        if any(fnmatch.fnmatch(name, pattern) for pattern in it.work.fragile):
            continue
        yield f"the file {name} missing", partial(_spoilt, name, None), usual
        yield f"noise in the file {name}", partial(_spoilt, name, lambda data: _NOISE), usual
        if it.work.above_env:  # a library may end the process
            yield f"the file {name} cut", partial(_spoilt, name, lambda data: data[: len(data) // 2]), usual
            yield f"a byte of the file {name} changed", partial(_spoilt, name, _flipped), usual


def _emptied(place: Path) -> None:
    for name in tree(place):
        (place / name).unlink()


def _spoilt(name: str, change: Callable[[bytes], bytes] | None, place: Path) -> None:
    """Change a file, or remove it."""
    path = place / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0x40 for byte in data[middle : middle + 1]) + data[middle + 1 :]


def _remade(it: Driver, context: Context, place: Path) -> None:
    shutil.rmtree(place)
    place.mkdir()
    it.work.engine.create(place, it.position(0), context)


def _in_the_place_of(numbers: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Descriptors of ours with those of these numbers that are free, and the file of each."""
    ours: dict[int, tuple[int, int]] = {}
    null = os.open(os.devnull, os.O_RDONLY)
    for fd in numbers:
        if fd == null:  # it has one of the numbers itself
            continue
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(null, fd, inheritable=False)
            ours[fd] = _file(fd) or (0, 0)
    ours[null] = _file(null) or (0, 0)
    return ours


def _inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # closed meanwhile
        return False


def _file(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
