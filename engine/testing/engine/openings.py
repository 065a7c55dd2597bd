"""How a state may be opened: read-only, with other options, from any number on, and not at all if it is gone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any
from unittest import SkipTest

from ...contract.engine import Context, Engine
from ...contract.options import Option
from ...errors import HoldfastError, InvalidInput
from ...model.positions import Position
from ..disks.faulty import ReadOnlyFiles
from ..support.contract import READ_ONLY_REPLAY, Contract, check, scratch
from ..support.crash_images import read_image, tree
from ..support.driver import Driver, driven, put_files
from ..support.growth import Life
from ..support.modelled import difference
from ..support.workload import Operation, Workload
from .transactions import begun, several

_NUMBERS = (*((1 << bits) - 2 for bits in (8, 16, 31, 32, 53)), (1 << 63) - 9)
"""A state begins at each of these, and its second transaction is the first that does not fit. All fit in 63 bits."""
_CHAIN = bytes(range(16))
_LONG_AGO = 10**18


class OpeningChecks(Contract):
    """See the module's text."""

    @check()
    def test_a_read_only_opening_changes_no_byte(self, work: Workload) -> None:
        """A state that is opened read-only shows what it holds, also on a disk that is mounted read-only. No byte below
        its directory is changed, no file made or removed, and none is opened to be written to. One that a killed
        process left, beside a view that was open, is at the position that its last checkpoint returned, too: what a
        library keeps in a log of its own is part of the state."""
        def claim(todo: list[list[Operation]]) -> None:
            with driven(work) as it:
                begun(it)
                for operations in todo:
                    it.commit(operations)
                with it.engine.view():
                    it.commit(work.numbered(69))
                    it.checkpoint()
                    _is_there_read_only(it)
                it.close()
                before = _aged(it)
                with _mounted_read_only(it), closing(it.opened(it.directory, read_only=True)) as engine:
                    it.compare_state(engine, what="a view of a state opened read-only")
                _same_files(it, before, "a read-only opening")

        self.prove(claim, examples=10, todo=several(work, 3))

    @check(READ_ONLY_REPLAY)
    def test_a_read_only_opening_replays_in_memory(self, work: Workload) -> None:
        """A state opened read-only takes the records after its position, shows them, and changes no byte."""
        def claim(before: list[list[Operation]], after: list[list[Operation]]) -> None:
            with driven(work) as it:
                begun(it)
                for operations in before:
                    it.commit(operations)
                it.checkpoint()
                for operations in [*after, work.numbered(70)]:
                    it.commit(operations)
                it.close()
                found = _aged(it)
                with _mounted_read_only(it), closing(it.recovered(it.directory, read_only=True)) as engine:
                    it.compare_state(engine, what="a view of a state opened read-only, and replayed,")
                _same_files(it, found, "a replay into a read-only opening")

        self.prove(claim, examples=12, before=several(work, 2), after=several(work, 3))

    @check()
    def test_numbers_may_be_large(self, work: Workload) -> None:
        """A state may begin at any transaction, as that of a store that was restored does. Its transactions across
        2**8, 2**16, 2**31, 2**32 and 2**53 are shown under their own numbers, checkpointed, opened again and copied."""
        for number in _NUMBERS:
            begins = Position(number, _CHAIN)
            with scratch() as place, closing(Life(work, place / "state", begins)) as life:
                _is_at(work, life, life.engine, begins, "a new state")
                for n in range(4):
                    life.commit(work.numbered(n))
                    if n % 2:
                        life.checkpoint()
                    _is_at(work, life, life.engine, life.engine.position, "a view")
                with closing(life.engine.image()) as image:
                    position = image.position
                    assert position == life.end, f"an image of a state at {life.end} says that it is at {position}"
                    put_files(life.context.env.files, place / "copy", read_image(image))
                with closing(work.engine.open(place / "copy", life.context, at=position)) as copy:
                    _is_at(work, life, copy, position, "a copy")
                life.reopen()
                _is_at(work, life, life.engine, life.end, "the state that is opened again")

    @check()
    def test_options_may_be_others_at_each_opening(self, work: Workload) -> None:
        """A state that was written with some options is opened with others: the defaults, the least, the most, and
        twice as much. Each time it shows what it had and goes on, or it refuses that option with `InvalidInput`. An
        option that the files depend on is kept in them."""
        if not work.engine.options:
            raise SkipTest(f"the {work.engine.name} engine has no options")
        with driven(work) as it:
            begun(it, 40)
            for n, options in enumerate(_others(work)):
                it.checkpoint()
                it.commit(work.numbered(100 + n))
                it.close()
                what = f"a state that was written with {it.context.options}, opened with {options}"
                before, it.context = it.context, Context(it.context.env, options)
                try:
                    it.reopen()
                except InvalidInput:
                    it.context = before
                    it.reopen()
                    continue
                except HoldfastError as error:
                    raise AssertionError(f"{what}, is refused: {error!r}") from error
                it.compare_state(what=what)
                it.commit([*work.examples[n % len(work.examples)], *work.numbered(200 + n)])
                it.checkpoint()
                it.reopen()
                it.compare_state(what=f"{what}, and written to")

    @check()
    def test_a_state_that_is_gone_does_not_open(self, work: Workload) -> None:
        """If the files of a state are gone, no opening makes an empty state in their place: each raises one of the
        kit's errors, and so does the next one. Whoever mounts the wrong disk must not find a store without content."""
        with driven(work) as it:
            begun(it)
            it.checkpoint()
            it.close()
            for how in ({}, {"read_only": True}, {"at": it.end}):
                place = it.directory.with_name("gone")
                it.context.env.files.make_directory(place)
                for _ in range(2):
                    what = f"open({', '.join(how)}) of a state that is gone"
                    try:
                        opened = work.engine.open(place, it.context, **how)
                    except HoldfastError:
                        continue
                    except Exception as error:
                        raise AssertionError(f"{what} raises {error!r}, and must raise Damaged") from error
                    opened.close()
                    raise AssertionError(f"{what} was not refused, and must raise Damaged")
                it.context.env.files.remove_tree(place)


def _is_at(work: Workload, life: Life, engine: Engine[Any, Any], position: Position, what: str) -> None:
    """Compare what an engine shows, and where it says that it is."""
    at = engine.position
    assert at == position, f"{what} is at {at}, and should be at {position}"
    with engine.view() as view:
        assert view.txid == life.txid, f"{what} shows transaction {view.txid:,}, and should show {life.txid:,}"
        where = difference(work.content(view), work.expected(life.model))
        assert not where, f"{what} at transaction {life.txid:,} is not what the model is there: {where}"


def _others(work: Workload) -> Iterator[dict[str, Any]]:
    """Options that are not those of the workload, one changed at a time, and the workload's own again."""
    own, engine = work.opened_with, work.engine
    yield dict(work.options)
    for name, option in engine.options.items():
        for value in _values(option, own.get(name, option.default)):
            yield {**own, name: value}
    yield own


def _values(option: Option, now: Any) -> list[Any]:
    numbers: list[Any] = [now * 2, now // 2] if type(now) is int and now < 1 << 40 else []
    allowed = (value for value in (option.default, option.least, option.most, *numbers)
               if value is not None and type(value) is type(option.default) and value != now)
    fitting = [value for value in dict.fromkeys(allowed)
               if (option.least is None or value >= option.least) and (option.most is None or value <= option.most)]
    return [value for value in fitting if not isinstance(value, float) or math.isfinite(value)]


def _aged(it: Driver) -> dict[str, bytes]:
    """The files of the state, after its directories were made to look as if nothing had changed in them for long."""
    for place in (it.directory, *it.directory.rglob("*/")):
        os.utime(place, ns=(_LONG_AGO, _LONG_AGO))
    return tree(it.directory)


@contextmanager
def _mounted_read_only(it: Driver) -> Iterator[None]:
    """Within the block, what the environment opens below the state's directory can only be read."""
    files, before = ReadOnlyFiles(it.directory), it.context
    it.context = replace(before, env=replace(before.env, files=files))
    try:
        yield
    except (HoldfastError, OSError) as error:
        if not files.refused:
            raise
        raise AssertionError(f"a read-only opening opens {files.refused[-1].name} to write to it, which fails on a "
                             f"read-only disk: {error!r}. Open it with the mode 'read'") from error
    finally:
        it.context = before


def _same_files(it: Driver, before: dict[str, bytes], what: str) -> None:
    after = tree(it.directory)
    made, gone = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    changed = [name for name in before if name in after and before[name] != after[name]]
    assert after == before, f"{what} made the files {made}, removed {gone} and changed {changed}"
    for place in (it.directory, *it.directory.rglob("*/")):
        assert place.stat().st_mtime_ns == _LONG_AGO, (
            f"{what} made a file in {place.relative_to(it.directory.parent)} and removed or renamed it, since the "
            "directory's time of change is another one: on a read-only file system this fails")


def _is_there_read_only(it: Driver) -> None:
    """Open what a process that is killed now leaves, read-only, and compare."""
    at, what = it.engine.position, "the state of a killed process, opened read-only,"
    with closing(it.opened(it.killed(), read_only=True)) as opened:
        assert opened.position == at, f"{what} is at {opened.position}, and its last checkpoint returned {at}"
        if it.work.engine.abilities.atomic:
            it.compare_state(opened, at.txid, what)
