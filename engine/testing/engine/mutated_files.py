"""Checks of state files that were changed or cannot be read: an error, and never other content.

Some checks change the files of a store in many ways, and open each result in another process (`mutations.py`). They
work for every engine, also for one that writes through a library, because nobody has the store open: it was closed, or
it crashed. Each is opened, read-only and for writing by turns, checked and read through, and its digest is taken. If it
is open for writing, it takes a transaction, is closed and opened again.

The content is compared with a model that is kept outside the store and the engine. A closed store shows its last
transaction. In a crashed store, the last groups of the log look like torn ones. It may lack those from the first
changed byte on, unless a later group is whole and so shows that there was more.
"""

from __future__ import annotations

import errno
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import SkipTest

from hypothesis import strategies as st

from ...contract.engine import Engine
from ...contract.view import View
from ...errors import DeviceFailed, HoldfastError, LimitReached
from ...store.store import Store
from ..disks.faulty import FaultyFiles
from ..disks.quiet import quiet_env
from ..support.children import NotFoundElsewhere, Server
from ..support.contract import ABOVE_ENV, CHECKSUMS, Contract, check, scratch
from ..support.counters import count
from ..support.crash_images import GroupEnd, group_ends, segments_of, state_of, tree
from ..support.driver import Driver, driven
from ..support.flipped_bytes import looked_up, must_be_found, places_in, records_over_others
from ..support.forks import Say
from ..support.modelled import SETTINGS, Modelled, difference, kept_with
from ..support.mutations import Mutation, Subject, Tree, files_of, mutated
from ..support.not_tried import not_tried
from ..support.workload import Operation, Workload
from .process_kills import script, told

SHOWN = 5
"""How many failed mutations a message describes; the others are only counted."""

_STAYING = 10
_ALIKE, _IN_A_ROW = 10**6, 8
"""Numbers that are written alike, as far as their length goes, from here on."""
_REFUSALS: dict[int, type[HoldfastError]] = {errno.EIO: DeviceFailed, errno.ENOMEM: LimitReached}
"""What the system says, and what the kit makes of it."""


@dataclass
class Case:
    """A store to be mutated.

    Attributes:
        tree, older: its files now, and at an earlier time.
        models: the content after each transaction.
        tail, ends: the last segment's name and where its groups end, if it is not sealed: a crash can lose only these.
    """

    tree: Tree
    older: Tree
    models: list[Any]
    tail: str = ""
    ends: list[GroupEnd] = field(default_factory=list)

    def at_least(self, mutation: Mutation, *, read_only: bool) -> int:
        """The last transaction that must be shown, if no error is raised."""
        if not self.ends:
            return len(self.models) - 1
        whole = self.ends
        gone = mutation.files.get(mutation.name, b"") is None
        if mutation.name == self.tail and not gone and all(end.offset < mutation.end for end in self.ends[:-1]):
            whole = [end for end in self.ends if end.offset <= mutation.first or end is self.ends[0]]
        # A read-only opening cannot make the last group durable, and leaves it out.
        return whole[-2 if read_only and len(whole) > 1 else -1].txid


class MutationChecks(Contract):
    """See the module's text."""

    @check(ABOVE_ENV, CHECKSUMS)
    def test_a_flipped_byte_in_the_state_is_found(self, work: Workload) -> None:
        """Any single flipped byte in the state of a store is found by opening it, by reading it or by the engine's own
        check, or it is harmless. Without an error, the store shows only what was written. A look-up that comes upon it
        raises an error, and does not say that nothing is there."""
        def claim(several: list[list[Operation]], closed: bool, which: int, share: float, mask: int) -> None:
            with _checkpointed(work, several, closed) as (kept, whole):
                files = [path for path in sorted(state_of(whole).rglob("*")) if path.is_file() and path.stat().st_size]
                path = files[which % len(files)]
                must_be_found(kept, whole, path, int(share * (path.stat().st_size - 1)), mask)

        with _checkpointed(work, [], closed=True) as (kept, whole):
            for path in sorted(state_of(whole).rglob("*")):
                for offset in places_in(path) if path.is_file() else ():
                    must_be_found(kept, whole, path, offset, 1)
        self.prove(claim, examples=12, several=st.lists(work.operations(), max_size=2), closed=st.booleans(),
                   which=st.integers(0, 9), share=st.floats(0, 1), mask=st.integers(1, 255))

    @check(ABOVE_ENV, CHECKSUMS)
    def test_a_record_in_the_place_of_another_is_found(self, work: Workload) -> None:
        """If a record of a file lies also where another one was, as after a write that went to the wrong place, that is
        found by opening the state, by reading it or by the engine's own check. Its own checksum is right, so the
        checksum covers the place as well, or the key."""
        with driven(work) as it:
            it.commit([one for n in range(_ALIKE, _ALIKE + _IN_A_ROW) for one in work.numbered(n)])
            it.checkpoint()
            it.close()
            marks = [mark for n in range(_ALIKE, _ALIKE + _IN_A_ROW) if (mark := _bytes_of(work.numbered(n)))]
            tried = 0
            for name, text, data in records_over_others(tree(it.directory), marks):
                tried += 1
                place = it.copied({**tree(it.directory), name: data})
                _is_found(it, place, f"{name} with {text}")
                shutil.rmtree(place)
            if not tried:
                not_tried("a record in the place of another", "the files do not show records that are equally long: "
                          "number() makes no texts or bytes, or they are packed")

    @check(ABOVE_ENV)
    def test_what_the_disk_refuses_is_no_damage(self, work: Workload) -> None:
        """While the disk or a limit of the process keeps the state from being read, each way of reading it shows what
        was written, or raises `DeviceFailed` or `LimitReached`. Nothing is reported as damaged, and afterwards
        everything is as before."""
        def claim(before: list[Operation], code: int) -> None:
            files, refusal = FaultyFiles(), _REFUSALS[code]
            with kept_with(work, before, env=quiet_env(files)) as kept:
                kept.store.checkpoint()
                with kept.store.snapshot() as view:
                    state = state_of(kept.path)
                    files.fail("pread", code=code, only=lambda path: state in path.parents)
                    _only_refused(refusal, "a view", lambda: kept.compare(view))
                    _only_refused(refusal, "the check of a view", lambda: _finds_nothing(view))
                    _only_refused(refusal, "the digest of a view", lambda: kept.note(view))
                    _only_refused(refusal, "a transaction", lambda: kept.write(1))
                    kept.store.close()
                    _only_refused(refusal, "an opening", lambda: kept.opened(kept.path, env=kept.env).close())
                    _only_refused(refusal, "a read-only opening", lambda: kept.opened(
                        kept.path, env=kept.env, read_only=True).close())
                    files.heal()
                kept.open()
                kept.found(kept.last)
                kept.write(2)

        for code in _REFUSALS:
            self.prove(claim, examples=2, before=work.operations(), code=st.just(code))

    @check(CHECKSUMS)
    def test_a_mutated_store_shows_nothing_else(self, work: Workload) -> None:
        """Whatever happens to one file of a store, opening and reading it raises one of the kit's errors, or the
        engine's own check says what is wrong, or it shows what was written. It does not crash, hang, raise a bare
        Python error, or show anything else."""
        tried(self, work, "mutations of stores", cases, _stores, self.effort.mutations)


def tried(contract: Contract, work: Workload, what: str,
          make: Callable[[Workload, Path, list[Any]], list[Any]], job: Callable[..., None], mutations: int) -> None:
    """Make cases below a directory and have `job` try that many mutations of them, in a warm server process. Raises
    `AssertionError`, which describes the first ones that failed."""
    seed = contract.number()
    try:
        server = Server(contract)
    except NotFoundElsewhere as error:
        raise SkipTest(str(error)) from error
    wrong: list[str] = []
    with scratch() as root, server, told(f"the mutations are drawn from --hypothesis-seed={seed}"):
        made = make(work, root, script(work, seed))
        (root / "cases").write_bytes(pickle.dumps(made))
        child = server.start(job, root, seed, mutations)
        for kind, *rest in child.messages():
            assert kind != "broken", rest[0]
            wrong += filter(None, rest)
        code = child.discard()
        assert code == 0, child.how(code)
        count(what, work.engine.name, mutations)
        more = f"\nand {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        assert not wrong, "\n".join(wrong[:SHOWN]) + more


def cases(work: Workload, root: Path, histories: list[Any]) -> list[Case]:
    """A store that was closed and one that crashed, with a state that was checkpointed more than once, and log.

    Their earlier files lack the state of an engine that is not atomic. Files that are written in place hold blocks of
    several times until redo has ended, so such an engine cannot tell one that the disk lost from one that redo needs.
    """
    with Modelled(work, root / "made", settings=SETTINGS) as kept:
        for number, operations in enumerate(histories[:9]):
            kept.transact(operations)
            # Content that stays: what is drawn may delete all that it wrote, and then no changed byte would matter.
            kept.transact([one for n in range(_STAYING) for one in work.numbered(_STAYING * number + n)])
            if number in (3, 7):
                kept.store.checkpoint()
            if number == 3:
                older = files_of(kept.crash_image())
                if not work.engine.abilities.atomic:
                    older = {name: data for name, data in older.items() if "state" not in Path(name).parts[:-1]}
                    not_tried("blocks of the state as they were once", "the engine writes in place (it is not atomic)")
                kept.seal()
        image = kept.crash_image()
        models = list(kept.models)
        kept.store.close()
        closed = Case(files_of(kept.path), older, models)
        tail = segments_of(image)[-1]
        ends, sealed = group_ends(tail)
        crashed = Case(files_of(image), older, models)
        if not sealed:
            crashed.tail, crashed.ends = str(tail.relative_to(image)), ends
        kept.path = kept.fresh("other")
        kept.open()  # the block closes it
    shutil.rmtree(root / "made")
    return [closed, crashed]


def _stores(work: Workload, say: Say, root: Path, seed: int, mutations: int) -> None:
    made: list[Case] = pickle.loads((root / "cases").read_bytes())
    subjects = [Subject(case.tree, case.older, spared=work.fragile) for case in made]

    def look(path: Path, mutation: Mutation, number: int) -> None:
        look_at_store(work, path, made[number % len(made)], mutation, read_only=number // 4 % 2 == 0)

    mutated(lambda number: subjects[number % len(made)], seed, range(mutations), root / "looks", look,
            lambda wrong: say("looked", wrong))


def look_at_store(work: Workload, path: Path, case: Case, mutation: Mutation, *, read_only: bool) -> None:
    """Open, check, read, and write. Raises `AssertionError` if it shows what it should not."""
    with _opened(work, path, read_only=read_only) as store:
        if mutation.end - mutation.first == 1:  # otherwise it may be a whole piece of another time, or of another place
            _look_up(work, store, case, read_only=read_only)
        found = shown(work, store)
        if found is None:
            return
        txid, content = found
        least, last = case.at_least(mutation, read_only=read_only), len(case.models) - 1
        assert least <= txid <= last, f"no error, and it shows transaction {txid} of {last}, not {least} or later"
        where = difference(content, work.expected(case.models[txid]))
        assert not where, f"no error, and at transaction {txid} something else is shown: {where}"
        if read_only:
            return
        store.checkpoint()
        model = case.models[txid].copy()
        with store.transaction() as tx:
            work.run(tx, model, work.numbered(10**12))
        store.log.verify()
    with _opened(work, path) as store:
        again = shown(work, store)
        where = "" if again is None else difference(again[1], work.expected(model))
        assert not where, f"no error, and after a commit, opened again, something else is shown: {where}"


def _look_up(work: Workload, store: Store[Any, Any], case: Case, *, read_only: bool) -> None:
    with nullcontext() if read_only else store.transaction() as tx, store.snapshot() as view:
        if view.txid < len(case.models):
            wrong = looked_up(work, view, tx, work.expected(case.models[view.txid]))
            assert not wrong, f"at transaction {view.txid}, {wrong}"


def _opened(work: Workload, path: Path, **how: Any) -> Store[Any, Any]:
    engine: type[Engine[Any, Any]] = work.engine
    return Store.open(path, engine, options=work.opened_with, settings=SETTINGS, create=False, **how)


def shown(work: Workload, store: Store[Any, Any]) -> tuple[int, Any] | None:
    """What a store shows, and at which transaction; None if the engine's own check says that it is wrong."""
    with store.snapshot() as view:
        if list(view.check()):
            return None
        content, _ = work.content(view), view.digest()
        return view.txid, content


def _bytes_of(operations: list[Operation]) -> list[bytes]:
    """The texts and bytes in some operations, but for their kinds."""
    given = [thing for operation in operations for thing in operation[1:]]
    return [thing.encode() if isinstance(thing, str) else thing for thing in given if isinstance(thing, str | bytes)]


def _is_found(it: Driver, place: Path, what: str) -> None:
    """Open a state in which one record lies over another, and read it."""
    try:
        with closing(it.opened(place)) as engine, engine.view() as view, closing(engine.begin()) as tx:
            expected = it.expected(len(it.records))
            wrong = looked_up(it.work, view, tx, expected, absent=True)
            if not wrong and list(view.check()):
                return
            wrong = wrong or difference(it.work.content(view), expected)
            assert not wrong, (f"{what}: no error, and something else is shown: {wrong}. Has its checksum what says "
                               "where it belongs?")
    except HoldfastError:
        return


def _only_refused(refusal: type[HoldfastError], what: str, look: Callable[[], object]) -> None:
    """`look` may be refused, and not fail otherwise."""
    try:
        look()
    except refusal:
        pass
    except (HoldfastError, OSError, MemoryError) as error:
        raise AssertionError(f"{what} of a state that cannot be read ends {type(error).__name__} ({error}), not "
                             f"{refusal.__name__}") from error


def _finds_nothing(view: View) -> None:
    found = list(view.check())
    assert not found, f"the engine's check finds {found} in a state that it cannot read"


@contextmanager
def _checkpointed(work: Workload, several: list[list[Operation]], closed: bool) -> Iterator[tuple[Modelled, Path]]:
    """A store, and a copy of its directory with a checkpointed state: closed, or with more log after the state."""
    with scratch() as root, Modelled(work, root) as kept:
        for number, operations in enumerate([*several, work.numbered(0), work.numbered(1)]):
            kept.transact(operations)
            if number == 0:
                kept.store.checkpoint()
        kept.store.checkpoint()
        if closed:
            kept.store.close()
            whole = kept.fresh("closed")
            shutil.copytree(kept.path, whole)
            kept.open()
        else:
            kept.write(2)
            whole = kept.crash_image()
        kept.shows(kept.last)
        yield kept, whole
