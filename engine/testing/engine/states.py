"""An engine's durable state, without a store: positions, checkpoints, reopening, images, copies.

The files of a state are copied at some moment, as a killed process leaves them, and opened without any log. An atomic
engine must then show exactly the model at the position that it reports. Any other engine must be right once the records
after its position are applied. How power cuts tear the files is for `power_cuts`.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import SkipTest
from unittest.mock import patch

from hypothesis import strategies as st

from ...contract.image import Image
from ...contract.view import View
from ...errors import ForeignStore, HoldfastError, StoreClosed, UnsupportedFormat, UpgradeRequired
from ...model.positions import ID_BYTES, Position
from ...toolkit.state_file import with_version
from ..support.another_time import a_clock_set_back
from ..support.contract import Contract, check
from ..support.crash_images import copy_running, read_image, tree
from ..support.driver import ORIGIN, Driver, driven
from ..support.interleave import at_lines
from ..support.leak_detection import descriptors
from ..support.not_tried import not_tried
from ..support.workload import Operation, Workload
from .transactions import Step, begun, histories, several, take

_OPENINGS = 30
_SPARE = 8
"""Descriptors and threads that may come and go."""

_LINES = 1500
"""Of a checkpoint at which its files are looked at."""
_KILLS = 6
"""In one checkpoint, at most."""
_READ_AT_ONCE = 256 << 10
"""Bytes of files that are read at each line of a checkpoint; if there are more, not at each one."""
_OF_A_LATER_VERSION = "of-a-later-version"
_OTHER = (UpgradeRequired, UnsupportedFormat)
_FORMAT_NAME = re.compile(r"^(?!.*PAYLOAD).*(FORMAT|VERSION)", re.IGNORECASE)


class StateChecks(Contract):
    """See the module's text."""

    @check()
    def test_the_position_is_true(self, work: Workload) -> None:
        """After a checkpoint, the durable state opened without any log is at the position that the checkpoint returned,
        holds everything up to there and, if the engine is atomic, exactly that. Closing it adds nothing."""
        def claim(todo: list[tuple[list[Operation], int]]) -> None:
            with driven(work) as it:
                _look_at_files(it, "an empty state")
                begun(it)
                for operations, back in todo:
                    it.commit(operations)
                    it.commit(work.numbered(50 + len(it.records)))
                    _look_at_files(it, "the state before a checkpoint")
                    it.checkpoint(max(0, it.published - back))
                    _look_at_files(it, "the state after a checkpoint")
                it.checkpoint()
                _look_at_files(it, "the state after the last checkpoint")
                it.commit(work.numbered(49))
                at = it.engine.position
                it.close()
                _look_at_files(it, "the state after it was closed", at)

        self.prove(claim, examples=12, todo=st.lists(st.tuples(work.operations(), st.integers(0, 2)), min_size=1,
                                                     max_size=3))

    @check()
    def test_only_a_checkpoint_moves_the_position(self, work: Workload) -> None:
        """The position is that of the durable state. Transactions, applied transactions, views and images do not move
        it. A checkpoint moves it at least to what it was asked for, never back, and never beyond what was applied."""
        def claim(todo: list[list[Operation]], asked: int) -> None:
            with driven(work) as it:
                begun(it)
                for operations in todo:
                    before = it.engine.position
                    it.commit(operations)
                    it.roll_back(operations)
                    it.image()
                    it.digest()
                    same = it.engine.position == before
                    assert same, f"without a checkpoint the position went from {before} to {it.engine.position}"
                    it.checkpoint(min(asked, it.published))
                    it.checkpoint(0)
                it.checkpoint()
                at = it.engine.position
                it.checkpoint()
                assert it.engine.position == at == it.end, f"all is checkpointed, and the position is {at}"

        self.prove(claim, examples=12, todo=several(work, 4), asked=st.integers(0, 4))

    @check()
    def test_a_killed_process_loses_nothing_that_was_logged(self, work: Workload) -> None:
        """After a kill at any moment, the state that is opened and the records after its position give exactly what was
        there. They do so too if the recovered state is killed in its turn."""
        def claim(steps: list[Step]) -> None:
            with driven(work) as it:
                begun(it)
                for step in steps:
                    take(it, step)
                    with contextlib.closing(it.recovered(it.killed())) as recovered:
                        it.compare_state(recovered, what="what a killed process left, recovered,")
                        assert it.digest(recovered) == it.digest(), "recovered, the state has another digest"
                it.commit(work.numbered(60))
                it.reopen()
                it.commit(work.numbered(61))
                it.compare_state(what="a view after recovery and another transaction")

        self.prove(claim, examples=12, steps=histories(work, 5))

    @check()
    def test_a_kill_in_a_checkpoint_tears_nothing(self, work: Workload) -> None:
        """A process that is killed in the middle of a checkpoint, between any two changes of its files, leaves files
        that open. If the engine is atomic, they are exactly the content at their position. With the records after it,
        they give what was there. So content and position are written as one, also if a library writes them."""
        with driven(work) as it:
            begun(it)
            it.checkpoint()
            for first in range(0, 9, 3):
                for operations in [*work.examples[first : first + 3], work.numbered(80 + first)]:
                    it.commit(operations)
                for n, left in enumerate(_left_by_kills(it)):
                    what = f"what a process leaves that is killed after change {n} of the files in a checkpoint"
                    try:
                        with contextlib.closing(it.opened(left)) as opened:
                            at = opened.position
                            if work.engine.abilities.atomic:
                                it.compare_state(opened, at.txid, f"{what}, opened without any log,")
                            it.feed(opened, it.records[at.txid :], pieces=2)
                            it.compare_state(opened, it.published, f"{what}, opened at {at}, with the log after that,")
                    except HoldfastError as error:
                        raise AssertionError(f"{what} cannot be read: {error!r}. Are content and position written in "
                                             "one step, by one rename or one transaction of a library?") from error

    @check()
    def test_a_clock_that_is_set_back_hides_nothing(self, work: Workload) -> None:
        """The clock of the machine may be set back between any two calls. What a killed process leaves then is still at
        the position of its last checkpoint. Which file is the newest is told by a number in it, not by a time."""
        with a_clock_set_back(work.engine.__module__) as clock, driven(work) as it:
            begun(it)
            for n in range(4):
                clock.again()
                it.commit(work.numbered(70 + n))
                it.checkpoint()
                clock.again()
                left = clock.reversed(it.killed())
                with contextlib.closing(it.opened(left)) as opened:
                    at = opened.position
                    assert at == it.end, (
                        f"while the clock is set back, a checkpoint reached {it.end}, and its files open at {at}: is "
                        "the newest of several chosen by the time of day?")
                    it.compare_state(opened, what="a state that was written while the clock was set back")
                it.reopen()

    @check()
    def test_a_checkpoint_frees_what_waits_for_it(self, work: Workload) -> None:
        """`pending_bytes` grows with what waits for a checkpoint, and falls when all is checkpointed, however much it
        was. The kit uses it to start checkpoints and to make commits wait."""
        with driven(work) as it:
            it.checkpoint()
            low = it.engine.pending_bytes()
            for n in range(200):
                it.commit(work.numbered(n))
            high = it.engine.pending_bytes()
            assert min(low, high) >= 0, f"pending_bytes() is {min(low, high)}"
            assert low < high, f"{low} bytes were pending after a checkpoint, and {high} when 200 transactions wait"
            it.checkpoint()
            left = it.engine.pending_bytes()
            assert left <= low + (high - low) // 4, f"{high} bytes were pending, and after a checkpoint of all {left}"
            it.compare_state()

    @check()
    def test_an_image_is_what_it_is_declared_to_be(self, work: Workload) -> None:
        """An image is of the durable state at its position, never ahead of it. Its files keep their names and sizes. If
        it is stable, no byte changes, whatever transactions and checkpoints run, and it opens as exactly that state. If
        it moves, it is right once it is replayed to what was applied when its last byte was read."""
        def claim(before: list[list[Operation]], during: list[list[Operation]]) -> None:
            with driven(work) as it, contextlib.ExitStack() as images:
                begun(it)
                for operations in before:
                    it.commit(operations)
                it.checkpoint()
                it.commit(work.numbered(80))  # not in the image
                taken: list[tuple[Image, dict[str, bytes]]] = []
                for operations in [*during, work.numbered(81)]:
                    image = it.engine.image()
                    images.callback(image.close)
                    at = it.engine.position
                    assert image.position == at, f"the image says {image.position}, and the durable state is at {at}"
                    taken.append((image, read_in_pieces(image)))
                    it.commit(operations)
                    it.checkpoint()
                    it.commit(work.numbered(82 + len(it.records)))
                for image, first in taken:
                    look_at_image(it, image, first)

        self.prove(claim, examples=12, before=several(work, 2), during=several(work, 3))

    @check()
    def test_an_image_outlives_its_files(self, work: Workload) -> None:
        """An image stays readable while checkpoints replace and remove files, when another image of the same position
        is made and closed, and even when the files it is made of are deleted."""
        with driven(work) as it:
            begun(it)
            it.checkpoint()
            image = _the_last_of_several(it)
            image_position = image.position
            for n in range(5):
                it.commit([operation for i in range(20) for operation in work.numbered(100 * n + i)])
                it.checkpoint()
            before = read_image(image)
            for file in image.files:
                (it.directory / file.name).unlink(missing_ok=True)
            assert read_image(image) == before, "the files of an image were deleted, and it does not read as before"
            image.close()
            with contextlib.closing(it.recovered(it.copied(before), at=image_position)) as copy:
                it.compare_state(copy, what="a copy of an image that outlived its files")
            with contextlib.suppress(Exception):  # its files are gone
                it.close()

    @check()
    def test_an_adopted_copy_is_where_it_is_told_to_be(self, work: Workload) -> None:
        """A copy that is opened with `at` is at that position, whatever it holds. The records after it bring it to the
        end, and a checkpoint makes it an ordinary state."""
        def claim(todo: list[list[Operation]], share: float, checkpoint: bool) -> None:
            with driven(work) as it:
                begun(it)
                for operations in todo:
                    it.commit(operations)
                    it.checkpoint()
                it.commit(work.numbered(90))
                image_position = it.position(int(share * it.engine.position.txid))
                path = it.copied(it.image())
                with contextlib.closing(it.opened(path, at=image_position)) as engine:
                    with engine.view() as view:
                        assert view.txid == image_position.txid, (
                            f"opened with at={image_position}, a view says that it shows {view.txid}")
                    for n, record in enumerate(it.records[image_position.txid :]):
                        engine.apply([record])
                        if checkpoint and n % 2 == 0:
                            engine.checkpoint(record.position)
                    it.compare_state(engine, what=f"a copy that was opened at {image_position} and replayed")
                    reached = engine.checkpoint(it.end)
                    assert reached == engine.position == it.end, f"replayed to {it.end}, a checkpoint reached {reached}"
                with contextlib.closing(it.opened(path)) as reopened:
                    assert reopened.position == it.end, f"checkpointed at {it.end}, it opens at {reopened.position}"
                    it.compare_state(reopened, what="a copied state that was replayed and checkpointed")

        self.prove(claim, examples=12, todo=several(work, 4), share=st.sampled_from((0.0, 0.5, 1.0)),
                   checkpoint=st.booleans())

    @check()
    def test_a_state_says_whose_it_is(self, work: Workload) -> None:
        """A state that was made for one store (`Context.store_id`) is refused for another with `ForeignStore`, as it is
        and as a copied image. A copy is told its position, so nothing else would show whose it is. `write_state` and
        `read_state` compare it."""
        with driven(work) as it:
            begun(it)
            place = it.directory.with_name("owned")
            ours, theirs = (replace(it.context, store_id=bytes([n]) * ID_BYTES) for n in (1, 2))
            it.context.env.files.make_directory(place)
            work.engine.create(place, ORIGIN, ours)
            with contextlib.closing(work.engine.open(place, ours)) as engine:
                it.feed(engine, it.records)
                engine.checkpoint(it.end)
            for how in ({}, {"at": it.end}, {"read_only": True}):
                try:
                    work.engine.open(place, theirs, **how).close()
                except ForeignStore:
                    continue
                raise AssertionError(f"the state of another store was opened with {how}")
            with contextlib.closing(work.engine.open(place, ours)) as engine:
                it.compare_state(engine, what="a state, opened for the store that it was made for")

    @check()
    def test_a_state_of_another_format_is_refused(self, work: Workload) -> None:
        """A state whose `state_format` is older or newer than the class's is refused with `UpgradeRequired` or
        `UnsupportedFormat`, as it is and as a copied image. If a version is written and never compared, code of another
        format reads bytes that it does not know. What is refused stays: a file of a kind that only a later version
        makes is still there."""
        with driven(work) as it:
            begun(it)
            mine, shown = work.engine.state_format, False
            for constants, written in itertools.product((False, True), (False, True)):
                ours = _of_format(it, mine, written=written)
                alike = ours == _of_format(it, mine, written=written)
                for version in (mine - 1, mine + 1, mine + 256):
                    theirs = _of_format(it, version, written=written, constants=constants)
                    if theirs is None or theirs == ours:
                        continue
                    try:
                        kinds = HoldfastError if constants else _OTHER
                        _is_refused(it, theirs, f"a state of format {version}", kinds)
                    except AssertionError:
                        if alike:  # otherwise they may differ in something else
                            raise
                    else:
                        shown = True
            for version in (mine - 1, mine + 1):
                if relabelled := _with_version(it, version):
                    shown = True
                    _is_refused(it, relabelled, f"a state whose files say that their format is {version}", _OTHER)
            if not shown:
                why = ("its bytes do not show the state_format of the class that made it (write cls.state_format into "
                       "the state, and not a number)")
                not_tried("states of another format", why)
                raise SkipTest(f"{work.engine.name}: {why}")

    @check()
    def test_closing_lets_go(self, work: Workload) -> None:
        """A closed engine holds neither descriptors nor threads, and its directory can be opened again at once. Views
        that are still open then, and views that were closed, show what they showed or raise `StoreClosed`."""
        with driven(work) as it:
            begun(it)
            it.checkpoint()
            counts: list[tuple[int, int]] = []
            for n in range(_OPENINGS):
                it.reopen()
                view, shown = it.engine.view(), it.published
                it.compare(view)
                it.commit(work.numbered(n + 10))
                it.image()
                it.checkpoint()
                newest = it.engine.view()
                if n % 2:
                    for each, at in ((view, shown), (newest, it.published)):
                        each.close()
                        _reads_on_or_is_closed(it, each, at, "a view that was closed")
                it.close()
                if n % 2 == 0:
                    for each, at in ((view, shown), (newest, it.published)):
                        _reads_on_or_is_closed(it, each, at, "a view that was open when its engine was closed")
                        each.close()
                gc.collect(0)
                counts.append((len(descriptors()), threading.active_count()))
            for what, first, last in zip(("file descriptors", "threads"), counts[2], counts[-1], strict=True):
                assert last < first + _SPARE, f"{_OPENINGS - 3} openings and closings left {last - first} {what} open"
            it.reopen()
            it.compare_state(what=f"a view after {_OPENINGS} openings")


def _left_by_kills(it: Driver) -> list[Path]:
    """Checkpoint, and copy the files between changes of them, as a process leaves them that is killed there."""
    left: list[Path] = []
    before: dict[str, bytes] = {}
    lines, every = 0, 1

    def look() -> None:
        nonlocal before, lines, every
        lines += 1
        if lines % every:
            return
        with contextlib.suppress(FileNotFoundError):  # a library tidies up in threads of its own
            if (now := tree(it.directory)) != before:
                left.append(it.directory.with_name(f"killed-{len(it.records)}-{len(left)}"))
                copy_running(it.directory, left[-1])
                before = now
                every = 1 + sum(map(len, now.values())) // _READ_AT_ONCE

    with at_lines(range(_LINES), look):
        it.checkpoint()
    if len(left) > _KILLS:  # the last ones matter most: the position is written then
        half = _KILLS // 2
        left = [*left[:-half:-(-(len(left) - half) // half)], *left[-half:]]
    return left


def _the_last_of_several(it: Driver) -> Image:
    """An image beside which others of the same position were made and closed, one before it and one after it."""
    first = it.engine.image()
    try:
        image = it.engine.image()
        shown = read_image(image)
        it.engine.image().close()
        same = read_image(image) == shown
        first.close()
        same = same and read_image(image) == shown
    except Exception as error:
        raise AssertionError(f"of several images of one position, one was closed, and another failed with {error!r}: "
                             "what an image has of its own needs a name that no other has") from error
    assert same, "of several images of one position, one was closed, and that changed what another reads"
    return image


def _reads_on_or_is_closed(it: Driver, view: View, shown: int, what: str) -> None:
    with contextlib.suppress(StoreClosed):
        it.compare(view, what, shown)


def _of_format(it: Driver, version: int, *, written: bool, constants: bool = False) -> dict[str, bytes] | None:
    """The files of a state that is made by a class of another `state_format`, or of this one: an empty state, or one
    that was written to. None if the class cannot make it.

    Args:
        constants: the numbers of the engine's module that seem to be its format change too.
    """
    engine, place = it.work.engine, it.directory.with_name("of another format")
    other: Any = type("Other", (engine,), {"state_format": version})
    module = sys.modules.get(engine.__module__)
    with contextlib.ExitStack() as stack:
        stack.callback(it.context.env.files.remove_tree, place)
        it.context.env.files.make_directory(place)
        for name, value in vars(module).items() if constants and module is not None else ():
            if _FORMAT_NAME.search(name) and type(value) is int and value == engine.state_format:
                stack.enter_context(patch.object(module, name, version))
        try:
            other.create(place, ORIGIN, it.context)
            if written:
                with contextlib.closing(other.open(place, it.context)) as made:
                    it.feed(made, it.records)
                    made.checkpoint(it.end)
        except Exception:  # a number that is too large, say
            return None
        return tree(place)


def _with_version(it: Driver, version: int) -> dict[str, bytes] | None:
    """The files of a state of the engine, in which those that the toolkit's `write_state` made say another version.
    None if there are none."""
    found = _of_format(it, it.work.engine.state_format, written=True) or {}
    relabelled = {name: changed for name, data in found.items() if (changed := with_version(data, version)) is not None}
    return {**found, **relabelled} if relabelled else None


def _is_refused(it: Driver, contents: dict[str, bytes], what: str, kinds: Any) -> None:
    position: Position | None
    for position, read_only in ((None, False), (it.end, False), (None, True)):
        place = it.copied({**contents, _OF_A_LATER_VERSION: b"which another version needs"})
        how = f"at={position}, read_only={read_only}"
        try:
            it.work.engine.open(place, it.context, at=position, read_only=read_only).close()
        except kinds:
            assert (place / _OF_A_LATER_VERSION).exists(), (
                f"{what} was refused ({how}), and a file in it that this code does not know was removed: look at the "
                "format first, and tidy up then")
            continue
        raise AssertionError(f"{what} was opened ({how}) by code for {it.work.engine.state_format}")


def _look_at_files(it: Driver, what: str, at: Position | None = None) -> None:
    """Open the files as they are, without any log, and compare. `at`: where a closed engine said that it was."""
    at = it.engine.position if at is None else at
    with contextlib.closing(it.opened(it.killed())) as opened:
        position = opened.position
        assert position == at, f"{what}: the engine said that it was at {at}, and its files say {position}"
        assert position.txid <= it.published, f"{what} is at {position}, and {it.published} were published"
        if it.work.engine.abilities.atomic or position.txid == it.published:
            it.compare_state(opened, position.txid, f"{what}, opened without any log,")
    with contextlib.closing(it.recovered(it.killed())) as recovered:
        it.compare_state(recovered, it.published, f"{what}, recovered from its position,")


def read_in_pieces(image: Image, piece: int = 1000) -> dict[str, bytes]:
    """Every byte of an image, by name."""
    contents: dict[str, bytes] = {}
    for file in image.files:
        path = PurePosixPath(file.name)
        proper = file.name == str(path) and not path.is_absolute() and ".." not in path.parts
        assert proper, f"the image has a file {file.name!r}, which is not a path below the state's directory"
        assert file.name not in contents, f"the image has the file {file.name!r} twice"
        pieces = [image.read(file.name, at, min(piece, file.size - at)) for at in range(0, file.size, piece)]
        contents[file.name] = b"".join(pieces)
        found = len(contents[file.name])
        assert found == file.size, f"the image says that {file.name} has {file.size} bytes, and it reads {found}"
    return contents


def look_at_image(it: Driver, image: Image, first: dict[str, bytes], when: str = "") -> None:
    """Read an image again, and compare what copies of it hold. `first` is what was read at first."""
    image_position, stable = image.position, it.work.engine.abilities.image == "stable"
    how = f" ({when})" if when else ""
    again = read_image(image)
    assert {n: len(data) for n, data in again.items()} == {n: len(data) for n, data in first.items()}, (
        f"the image's files have other names or sizes than when it was made{how}")
    if stable:
        changed = [name for name in first if first[name] != again[name]]
        assert not changed, f"the image is declared stable, and bytes of {', '.join(changed)} changed{how}"
        with contextlib.closing(it.opened(it.copied(again), at=image_position)) as copy:
            it.compare_state(copy, image_position.txid, f"a copy of the stable image at {image_position}")
    for contents, read in ((first, "at first"), (again, "at last")):
        with contextlib.closing(it.recovered(it.copied(contents), at=image_position)) as copy:
            it.compare_state(copy, what=f"a copy of the image at {image_position}, read {read} and replayed,{how}")
