"""Ways of reading a view: all of them show one content, also of awkward keys, and also while others write."""

from __future__ import annotations

import collections
import contextlib
import gc
import itertools
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import SkipTest

from ...contract.view import View
from ..support.alike import alike
from ..support.contract import Contract, check
from ..support.driver import Driver, driven
from ..support.leak_detection import descriptors
from ..support.neighbours import has_prefixes, neighbours
from ..support.not_tried import not_tried
from ..support.ways import short
from ..support.whereabouts import whereabouts
from ..support.workload import AWKWARD_KEYS, KeyValues, Operation, Workload, sampled
from .sizes import of_pairs
from .transactions import begun, several

_DRAWN = 12
_BEGUN = 3
"""Pieces of a walk that are read before others write."""
_WALKED = 40
_WARM, _DROPPED = 2, 20
_PATIENCE_S = 5.0
"""For a transaction and a checkpoint that wait for nobody."""


class ReadingChecks(Contract):
    """See the module's text."""

    @check()
    def test_every_way_of_reading_shows_one_content(self, work: Workload) -> None:
        """All pairs, single keys, prefixes, ranges and the count show the same, of keys that are prefixes of one
        another, that differ in a NUL, a blank or a capital, that are empty, and that begin or end with the highest
        byte: as they are put, in one transaction and in several, overwritten and deleted, after a checkpoint, a kill,
        and in a copy. What an older view, or a transaction that was dropped, has looked up changes nothing of what
        newer ones find."""
        pairs = of_pairs(work)
        prefixed = has_prefixes(pairs.number(0)[0])
        lacking = [f"{name}=" for name in ("find", "scan", "range", "count")
                   if getattr(pairs.ways, name) is None and (prefixed or name != "scan")]
        if lacking:
            not_tried("ways of reading a view", f"the workload does not give {', '.join(lacking)}")
        keys = _awkward(pairs)
        with driven(work) as it:
            _compare(it, pairs, "a view of an empty state")
            it.commit([("try", key, pairs.number(n)[1]) for n, key in enumerate(keys)])
            _everywhere(it, pairs, "one transaction")
            for n, key in enumerate(keys):
                it.commit([("try", key, pairs.number(n + 1)[1])])
            _everywhere(it, pairs, "transactions that overwrite")
            if pairs.delete is not None:
                there = len(it.models[-1])
                it.commit([("delete", index) for index in range(there // 2)])
                _everywhere(it, pairs, "a transaction that deletes")
                it.commit([("try", key, pairs.number(n)[1]) for n, key in enumerate(keys)])
                it.commit([("delete", -1)])
                _compare(it, pairs, "a view after the last key was deleted")
                it.commit([("delete", 0)] * len(it.models[-1]))
                _everywhere(it, pairs, "everything was deleted")
        _look_up_in_older_ones(work, pairs)

    @check()
    def test_a_walk_goes_on_while_others_write(self, work: Workload) -> None:
        """A walk over a view that is begun before transactions and a checkpoint, and read to its end after them, gives
        what the view showed when it was made. The transactions overwrite, delete and add keys before and behind where
        the walk is. Another walk over the same view is begun and ended meanwhile, and does not disturb it. Another
        thread's transaction and checkpoint do not wait for the end of a walk."""
        def claim(todo: list[list[Operation]]) -> None:
            with driven(work) as it:
                begun(it, _WALKED)
                for operations in todo:
                    it.commit(operations)
                for checkpointed, number in itertools.product((False, True), range(2)):
                    if checkpointed:
                        it.checkpoint()
                    with it.engine.view() as view:
                        it.compare(view)
                        whole = {way: list(walk) for way, walk in work.walks(view).items()}
                        if not whole:
                            why = "the workload has no walks()"
                            not_tried("walks that are read while others write", why)
                            raise SkipTest(f"{why}, so the suite cannot begin one and go on later")
                        walks = work.walks(view)
                        first = {way: list(itertools.islice(walk, _BEGUN)) for way, walk in walks.items()}
                        for way, walk in work.walks(view).items():
                            _is_whole(way, whole[way], list(walk), "while another one was half-way,")
                        _write_beside(it, 10**6 + len(it.records), walks)
                        _write(it, todo, 100 * (number + 2 * checkpointed))
                        for way, walk in walks.items():
                            _is_whole(way, whole[way], first[way] + list(walk),
                                      "begun before others wrote and read to its end after them,")
                        it.compare(view, "a view that was walked while others wrote")

        self.prove(claim, examples=3, todo=several(work, 4, at_least=2))

    @check()
    def test_a_walk_that_is_dropped_holds_nothing(self, work: Workload) -> None:
        """A walk of which one piece is read, and which is dropped then, as a loop that ends early does, holds nothing
        once its view is closed. Twenty of them, with a checkpoint before each, leave no more threads, descriptors and
        files behind than walks that are read to their end, and checkpoints, closing and opening go on."""
        left: dict[str, dict[str, int]] = {}
        for how in ("whole", "dropped"):
            with driven(work) as it:
                begun(it, _WALKED)
                for n in range(_WARM + _DROPPED):
                    if n == _WARM:
                        before = _held(it)
                    it.commit(work.numbered(100 + n))
                    it.checkpoint()
                    with it.engine.view() as view:
                        walks = dict(work.walks(view))
                        if not walks:
                            raise SkipTest("the workload has no walks(), so the suite cannot begin one and drop it")
                        while walks:
                            _, walk = walks.popitem()
                            next(walk, None)
                            if how == "whole":
                                collections.deque(walk, maxlen=0)
                            del walk
                left[how] = {what: held - before[what] for what, held in _held(it).items()}
                it.compare_state(what=f"a view after {_DROPPED} walks were begun and dropped")
                it.checkpoint()
                it.reopen()
                it.compare_state(what=f"a view after {_DROPPED} walks were begun and dropped, and an opening")
        for what, more in left["dropped"].items():
            usual = left["whole"][what]
            assert more < usual + _DROPPED // 2, (
                f"{_DROPPED} walks were begun, read for one piece and dropped, and there are {more} more {what} than "
                f"before. After walks that are read to their end there are {usual} more. A generator that is dropped "
                "comes to no line behind its last yield: let go of what it holds in a finally")


def _look_up_in_older_ones(work: Workload, pairs: KeyValues) -> None:
    """Change a key again and again. After each change, ask every older view for it, and then a new view, and a
    transaction that is dropped."""
    find, get = pairs.ways.find, pairs.get
    if find is None and get is None:
        return
    (key, first), (_, second) = pairs.number(500), pairs.number(501)
    with driven(work) as it, contextlib.ExitStack() as opened:
        begun(it)
        older: list[tuple[View, Any]] = []

        def look(when: str) -> None:
            newest = it.engine.view()
            opened.callback(newest.close)
            older.append((newest, it.models[-1].get(key)))
            for view, value in older:
                if find is None:
                    break
                which = "a new view" if view is newest else f"a view at transaction {view.txid}"
                found = find(view, key)
                assert alike(found, value), (
                    f"{when}, find() of {short(key)} in {which} gives {short(found)}, and not {short(value)}, after it "
                    "was asked of views that are older: is what one view finds, or does not find, kept for all?")
            if get is not None:
                with contextlib.closing(it.engine.begin()) as tx:
                    found, value = get(tx, key), older[-1][1]
                assert alike(found, value), (
                    f"{when}, get() of {short(key)} gives {short(found)}, and not {short(value)}, after older views "
                    "and transactions were asked for it: is what one of them finds, or does not find, kept for all?")

        look("before it is there")
        steps: list[tuple[str, list[Operation] | None]] = [
            ("after it was put", [("put", key, first)]), ("after it was overwritten", [("put", key, second)]),
            ("after a checkpoint", None)]
        if pairs.delete is not None:
            steps += [("after it was deleted", []), ("after another checkpoint", None)]
        steps += [("after it was put again", [("put", key, first)]), ("after the last checkpoint", None)]
        for when, operations in steps:
            if operations is None:
                it.checkpoint()
            else:
                it.commit(operations or [("delete", sorted(it.models[-1]).index(key))])
            look(when)


def _write_beside(it: Driver, number: int, walks: Mapping[str, Iterator[Any]]) -> None:
    """Commit and checkpoint in another thread, while walks are half-way in this one."""
    errors: list[BaseException] = []

    def write() -> None:
        try:
            it.commit(it.work.numbered(number))
            it.checkpoint()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=write, name="holdfast-writer", daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    if thread.is_alive():
        where = whereabouts(thread)
        for walk in walks.values():  # so that it can end
            collections.deque(walk, maxlen=0)
        thread.join(_PATIENCE_S)
        raise AssertionError(f"a transaction and a checkpoint in another thread are not done after {_PATIENCE_S} s, "
                             f"while walks by {' and '.join(walks)} are half-way. A reader may take hours over a walk: "
                             f"hold no lock at a yield\n{where}")
    if errors:
        raise errors[0]


def _held(it: Driver) -> dict[str, int]:
    gc.collect()
    files = sum(path.is_file() for path in it.directory.rglob("*"))
    return {"threads": threading.active_count(), "descriptors": len(descriptors()), "files": files}


def _awkward(work: KeyValues) -> list[Any]:
    """Awkward keys of the kind that the workload draws: some of them, and their neighbours."""
    drawn = sorted(set(sampled(work.keys, 3 * _DRAWN)))[:_DRAWN]
    own = AWKWARD_KEYS if type(drawn[0]) is bytes else ()
    near = (key for one in drawn[:3] for key in neighbours(one))
    numbers = {work.number(n)[0] for n in range(100)}
    return [key for key in dict.fromkeys([*own, *drawn, *near]) if key not in numbers]


def _compare(it: Driver, work: KeyValues, what: str, engine: Any = None) -> None:
    with (engine or it.engine).view() as view:
        it.compare(view, what, it.published)
        work.ways.content(view, every_key=True)


def _everywhere(it: Driver, work: KeyValues, after: str) -> None:
    """Compare every way of reading now, after a checkpoint, after an opening, and in a copy."""
    _compare(it, work, f"a view after {after}")
    it.checkpoint()
    _compare(it, work, f"a view after {after} and a checkpoint")
    it.reopen()
    _compare(it, work, f"a view after {after}, a checkpoint and an opening")
    with contextlib.closing(it.recovered(it.copied(it.image()), at=it.engine.position)) as copy:
        _compare(it, work, f"a copy after {after}", copy)


def _write(it: Driver, todo: list[list[Operation]], number: int) -> None:
    """Transactions that overwrite, delete, and add before and behind what is there, with a checkpoint among them."""
    for operations in todo:
        it.commit(operations)
        it.commit(it.work.numbered(number + len(it.records)))
    if isinstance(it.work, KeyValues):
        it.commit([("set", index, it.work.number(number)[1]) for index in range(0, len(it.models[-1]), 2)])
        if it.work.delete is not None:
            it.commit([("delete", index) for index in range(len(it.models[-1]) // 3)])
    it.checkpoint()
    for operations in todo:
        it.commit(operations)
    it.commit(it.work.numbered(number + 99))


def _is_whole(way: str, whole: list[Any], found: list[Any], when: str) -> None:
    told = f"a walk by {way}, {when}"
    missing = [piece for piece in whole if piece not in found]
    assert not missing, f"{told} leaves out {short(missing[0])}"
    more = [piece for piece in found if piece not in whole]
    assert not more, f"{told} gives {short(more[0])}, which was not there"
    assert len(found) == len(whole), f"{told} gives something twice"
