"""Checks of the abilities that an engine declares (staging, bulk loads, background checkpoints), and of threads.

As in `transactions`, the engine runs without a store. Checks of abilities that it does not declare are skipped.
"""

from __future__ import annotations

import io
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ...contract.engine import BulkEngine, Engine, StagingEngine
from ...contract.image import Image
from ...errors import InvalidInput
from ...model.positions import Position
from ..disks.quiet import quiet_env
from ..disks.simdisk import SimDisk
from ..disks.simops import Op
from ..support.alike import alike
from ..support.contract import ABOVE_ENV, BACKGROUND_CHECKPOINT, BULK, STAGING, Contract, check
from ..support.crash_images import read_image
from ..support.driver import Driver, driven
from ..support.interleave import LIMIT_S, Beside, at_each_line, lines_of
from ..support.limits import would_take
from ..support.not_tried import not_tried
from ..support.raising import raises
from ..support.workload import KeyValues, Operation, Workload, sampled
from .transactions import Held, begun, several

_MANY, _LARGE = 40, 10
"""Transactions that are applied while others look, and numbers in each."""
_PAUSE_S = 0.0005
_AT_ONCE = 6
_PIECE = 64
_STAGED = 4


class AbilityChecks(Contract):
    """See the module's text."""

    @check(STAGING)
    def test_what_is_staged_shows_only_to_writers(self, work: Workload) -> None:
        """The next transaction and `staged_view` see what is staged. Other views see it only after `publish`, and then
        exactly what was published. A checkpoint never writes what is not published. Published content is what `apply`
        makes of the same records. This is tried with every order of two short values and deletions in four staged
        transactions, published and checkpointed one by one."""
        def claim(todo: list[list[Operation]], share: float) -> None:
            with driven(work) as it, driven(work) as other:
                engine = it.engine
                assert isinstance(engine, StagingEngine)
                begun(it)
                held = Held(it)
                held.take(engine.view(), "a view before anything was staged")
                for n, operations in enumerate([*todo, work.numbered(4)]):
                    it.tx(operations, stage=True)
                    it.compare_state(what="a view while something is staged")
                    with engine.staged_view() as view:
                        it.compare(view, "staged_view()", len(it.records))
                    if n == 0:
                        held.take(engine.staged_view(), "a staged view")
                it.checkpoint()
                _nothing_unpublished(it)
                some = it.published + int(share * (len(it.records) - it.published))
                it.publish(some)
                it.compare_state(what="a view after some of what was staged was published")
                held.take(engine.view(), "a view of some of what was staged")
                it.checkpoint()
                _nothing_unpublished(it)
                it.publish(len(it.records))
                it.publish(len(it.records))
                it.compare_state(what="a view after all was published")
                held.look("after all was published")
                it.commit(work.numbered(5))
                it.checkpoint()
                held.look("after a checkpoint of what was staged")
                other.follow(it)
                other.compare_state(what="a view after the same transactions were applied and not staged")
                assert other.digest() == it.digest(), "transactions give another digest staged than applied"
                held.let_go()
                it.reopen()
                it.compare_state(what="a view after what was staged was reopened")

        self.prove(claim, examples=12, todo=several(work, 3), share=st.sampled_from((0.0, 0.5, 1.0)))
        if isinstance(work, KeyValues):
            for present in (False, True):
                _stage_every_order(work, present)
        else:
            not_tried("every order of values and deletions that are staged",
                      "the workload is not a KeyValues, so the suite does not know what its keys and values are")

    @check(BULK)
    def test_a_bulk_load_is_one_transaction(self, work: Workload) -> None:
        """A bulk load is a transaction: it is checked before anything is written, invisible until it is applied, and
        durable then. A replay gives the same content. Held views do not show it, later transactions do."""
        def claim(before: list[list[Operation]], after: list[list[Operation]]) -> None:
            with driven(work) as it:
                assert isinstance(it.engine, BulkEngine)
                begun(it)
                for operations in before:
                    it.commit(operations)
                with raises(InvalidInput, "write_bulk(object())"):
                    it.engine.write_bulk(object(), io.BytesIO())
                held = Held(it)
                held.take(it.engine.view(), "a view before a bulk load")
                copied, image_position = it.image(), it.engine.position
                record = it.bulk(6)
                it.compare_state(what="a view after write_bulk, before apply_bulk,")
                it.apply(record)
                it.compare_state(what="a view after a bulk load")
                held.look("after a bulk load")
                with closing(it.opened(it.killed())) as killed:
                    at = killed.position
                    assert at.txid == record.txid, f"apply_bulk is done, and the state is at {at}"
                    it.compare_state(killed, what="what a killed process leaves after a bulk load")
                for operations in after:
                    it.commit(operations)
                it.commit(work.numbered(7))
                held.let_go()
                it.reopen()
                it.compare_state(what="a view after a bulk load and a reopening")
                with closing(it.recovered(it.copied(copied), at=image_position)) as replayed:
                    it.compare_state(replayed, what="a copy from before a bulk load, replayed,")
                    assert it.digest(replayed) == it.digest(), "a replayed bulk load gives another digest"

        self.prove(claim, examples=12, before=several(work, 2), after=several(work, 2))

    @check()
    def test_a_view_in_the_middle_of_applying_is_whole(self, work: Workload) -> None:
        """A view that another thread makes while a transaction is being applied, or staged and published, shows the
        state before it or after it, and says which; never a part of it."""
        def claim(first: list[Operation], second: list[Operation]) -> None:
            with driven(work) as it:
                begun(it)
                for operations in (first + work.numbered(20), second + work.numbered(21) + work.numbered(22)):
                    with it.engine.view():
                        record = it.tx(operations, stage=work.watermarks)
                    assert record is not None
                    with at_each_line(partial(_whole_view, it)):
                        if work.watermarks:
                            it.publish(record.txid)
                        else:
                            it.apply(record)
                    it.compare_state()
                other = it.copied(it.image())
                with closing(it.opened(other)) as replica:
                    with at_each_line(partial(_whole_view, it, replica)):
                        it.feed(replica, it.records[replica.position.txid :], pieces=2)
                    it.compare_state(replica)

        self.prove(claim, examples=4, first=work.operations(), second=work.operations())

    @check()
    def test_a_view_in_the_middle_of_a_checkpoint_is_whole(self, work: Workload) -> None:
        """A view that another thread makes while a checkpoint is made shows all that was applied, and a view that was
        made before it shows what it did. This is tried at about 200 lines of the checkpoint, including the last
        100."""
        def claim(before: list[Operation], after: list[Operation]) -> None:
            with driven(work) as first, driven(work) as it:
                for here in (first, it):
                    begun(here)
                    here.commit(before)
                    here.checkpoint()
                    here.commit(after)
                    here.commit(work.numbered(23))
                lines = lines_of(partial(first.engine.checkpoint, first.end))
                held = it.engine.view()

                def look() -> None:
                    with it.engine.view() as view:
                        it.compare(view, "a view made in the middle of a checkpoint", it.published)
                    it.compare(held, "a view made before a checkpoint, and read in its middle,", it.published)

                with at_each_line(look, among=lines):
                    it.checkpoint()
                it.compare_state()
                held.close()

        self.prove(claim, examples=2, before=work.operations(), after=work.operations())

    @check()
    def test_an_image_is_read_by_several_at_once(self, work: Workload) -> None:
        """While one thread reads a piece of an image, another one reads other pieces, and each gets its own."""
        with driven(work) as it:
            begun(it, 40)
            it.checkpoint()
            image = it.engine.image()
            with closing(image):
                whole = read_image(image)
                large = sorted(whole, key=lambda name: len(whole[name]))[-2:]
                pieces = [(name, at, min(_PIECE, len(whole[name]) - at)) for name in large
                          for at in range(0, len(whole[name]), len(whole[name]) // 4 + 1)]
                others = itertools.cycle(pieces[::-1])

                def read(piece: tuple[str, int, int]) -> None:
                    name, at, length = piece
                    assert image.read(*piece) == whole[name][at : at + length], (
                        f"{length} bytes at {at} of the image's {name}, read while another thread read others, are "
                        "not what they are when one thread reads them alone: do readers share a place in the file?")

                for piece in pieces:
                    with at_each_line(lambda: read(next(others))):
                        read(piece)

    @check()
    def test_views_and_images_in_other_threads(self, work: Workload) -> None:
        """Views and images may be made, read and closed in any thread while transactions are applied and checkpoints
        made, and each shows one whole state. If the engine does not declare background checkpoints, no image is made
        while one runs."""
        beside = work.engine.abilities.background_checkpoint
        apart: AbstractContextManager[Any] = nullcontext() if beside else threading.Lock()
        with _threads_change_often(), driven(work) as first, driven(work) as it:
            for n in range(_MANY):
                first.commit([operation for i in range(_LARGE) for operation in work.numbered(n * _LARGE + i)])
            it.records, it.models = first.records, first.models
            with it.engine.view() as view:
                another = Beside(LIMIT_S)
                another.run(partial(it.compare, view, "a view that another thread made"))
                another.finish()
            ended = threading.Event()
            errors: list[BaseException] = []

            def reading(look: Callable[[], None]) -> None:
                try:
                    while not ended.is_set() and not errors:
                        look()
                except BaseException as error:
                    errors.append(error)

            looks = [partial(_look_at_views, it), partial(_look_at_views, it), partial(_look_at_image, it, apart)]
            threads = [threading.Thread(target=reading, args=(look,), daemon=True) for look in looks]
            for thread in threads:
                thread.start()
            for n, record in enumerate(it.records):
                it.apply(record)
                if n % 4 == 0:
                    with apart:
                        it.checkpoint()
                time.sleep(_PAUSE_S)
                if errors:
                    break
            ended.set()
            for thread in threads:
                thread.join(LIMIT_S)
                assert errors or not thread.is_alive(), "a reader in another thread never ends"
            if errors:
                raise errors[0]
            it.compare_state(what="a view after all threads ended")

    @check(BACKGROUND_CHECKPOINT, ABOVE_ENV)
    def test_writers_and_readers_beside_a_checkpoint(self, work: Workload) -> None:
        """At each write, sync and rename of a checkpoint, transactions may run, and views may be opened and closed.
        These show the right content, and the checkpoint leaves the right state and position."""
        def claim(before: list[Operation], beside: list[list[Operation]]) -> None:
            disk = SimDisk()
            it = Driver(work, Path("/state"), quiet_env(disk))
            begun(it)
            it.checkpoint()
            held = Held(it)
            held.take(it.engine.view(), "a view before a checkpoint")
            it.commit(before)
            it.commit(work.numbered(4))
            held.take(it.engine.view(), "a view at a checkpoint's beginning")
            left, other, upto = list(beside), Beside(), it.published
            here = threading.current_thread()

            def during(op: Op) -> None:
                if threading.current_thread() is here:
                    other.run(in_the_middle)

            def in_the_middle() -> None:
                if left:
                    it.commit(left.pop())
                held.look("in the middle of a checkpoint")
                it.compare_state(what="a view made in the middle of a checkpoint")

            # Not `it.checkpoint`: how far it is published may grow on the way.
            disk.before = during
            reached = it.engine.checkpoint(it.position(upto))
            disk.before = lambda op: None
            other.finish()
            assert reached == it.engine.position, f"the checkpoint reached {reached}, and is at {it.engine.position}"
            assert upto <= reached.txid <= it.published, f"checkpoint({upto}) reached {reached.txid} of {it.published}"
            held.look("after a checkpoint beside which others went on")
            it.compare_state(what="a view after a checkpoint beside which others went on")
            held.let_go()
            it.reopen()
            it.compare_state(what="a view after a checkpoint beside which others went on, and a reopening")
            it.close()

        self.prove(claim, examples=16, before=work.operations(), beside=several(work, 4))


    @check(BACKGROUND_CHECKPOINT)
    def test_an_image_in_the_middle_of_a_checkpoint(self, work: Workload) -> None:
        """An image that another thread makes in the middle of a checkpoint is of the position that it names: the one
        before the checkpoint, or one that the checkpoint reaches. A stable image opens as exactly the state there. This
        is tried at about 200 lines of the checkpoint, including the last 100."""
        def claim(before: list[Operation], after: list[Operation]) -> None:
            def begin(it: Driver) -> None:
                begun(it)
                it.commit(before)
                it.checkpoint()
                it.commit(after)
                it.commit(work.numbered(4))

            with driven(work) as it, driven(work) as first:
                begin(first)
                lines = lines_of(partial(first.engine.checkpoint, first.end))
                begin(it)
                least = it.engine.position.txid
                taken: dict[Position, list[dict[str, bytes]]] = {}

                def take() -> None:
                    image_position, contents = _read_out(it.engine.image())
                    some = taken.setdefault(image_position, [])
                    if contents not in some:
                        some.append(contents)

                with at_each_line(take, among=lines):
                    it.engine.checkpoint(it.end)
                for image_position, some in taken.items():
                    at_one = least <= image_position.txid <= it.published
                    assert at_one, (f"an image made during a checkpoint from {least} to {it.published} is at "
                                    f"{image_position}")
                    for contents in some:
                        _look_at_copy(it, image_position, contents, "made in the middle of a checkpoint")

        self.prove(claim, examples=3, before=work.operations(), after=work.operations())


def _stage_every_order(work: KeyValues, present: bool) -> None:
    """One key for each order of two values and, if there are any, deletions. Values are taken that Python has only one
    object of, if the engine takes them: who compares staged changes by identity takes equal ones for the same.

    Args:
        present: whether the keys are there, and checkpointed, before anything is staged.
    """
    with driven(work) as it:
        engine = it.engine
        assert isinstance(engine, StagingEngine)
        key, value = work.number(0)
        single: dict[type, tuple[Any, Any]] = {bytes: (b"", b"1"), str: ("", "1"), int: (0, 1), bool: (False, True)}
        values = [one for one in single.get(type(value), ()) if would_take(engine, work.takes, key, one)]
        if len(values) < 2:
            values = [value, *(other for other in sampled(work.values, 30) if other != value)][:2]
        actions = [*range(len(values)), *([None] if work.delete is not None else [])]
        orders = {work.number(n)[0]: order for n, order in enumerate(itertools.product(actions, repeat=_STAGED))}
        it.commit(work.numbered(10**6))
        if present:
            it.commit([("put", key, values[0]) for key in orders])
            it.checkpoint()
        base = it.published
        for step in range(_STAGED):
            there = sorted(it.models[-1])
            operations: list[Operation] = [("put", key, values[order[step]]) for key, order in orders.items()
                                           if order[step] is not None]
            gone = [there.index(key) for key, order in orders.items() if order[step] is None and key in it.models[-1]]
            # Those with the highest index first, so that the others keep theirs; all before what is put.
            it.tx([*(("delete", index) for index in sorted(gone, reverse=True)), *operations], stage=True)
        for published in range(base, len(it.records) + 1):
            for done in ("published", "checkpointed"):
                if published > base:
                    it.publish(published) if done == "published" else it.checkpoint()
                when = f"when {published - base} of {_STAGED} staged transactions are {done}"
                it.compare_state(what=f"a view {when}")
                _next_writer_sees(it, work, orders, values, when)
                with engine.staged_view() as view:
                    it.compare(view, f"staged_view() {when}", len(it.records))


def _next_writer_sees(it: Driver, work: KeyValues, orders: Mapping[Any, Sequence[Any]], values: Sequence[Any],
                      when: str) -> None:
    if work.get is None:
        return
    with closing(it.engine.begin()) as tx:
        for key, order in orders.items():
            found, expected = work.get(tx, key), it.models[-1].get(key)
            did = ", ".join("delete" if n is None else f"put {values[n]!r:.40}" for n in order)
            assert alike(found, expected), (
                f"{when}, the next transaction finds {found!r:.40} for a key with which they did this: {did}. Is what "
                "a later transaction staged dropped because it is, or equals, what was checkpointed?")


def _nothing_unpublished(it: Driver) -> None:
    """What a killed process leaves now holds nothing that is not published."""
    with closing(it.opened(it.killed())) as killed:
        assert killed.position.txid <= it.published, f"in the durable state and not published: {killed.position}"
        if it.work.engine.abilities.atomic:
            it.compare_state(killed, killed.position.txid, "the durable state while something is staged")


def _whole_view(it: Driver, engine: Engine[Any, Any] | None = None) -> None:
    with (engine or it.engine).view() as view:
        it.compare(view, "a view made while transactions are being applied")


def _look_at_views(it: Driver) -> None:
    """Make some views as fast as possible, so that one is made in the middle of a transaction; then compare them."""
    views = []
    try:
        for _ in range(_AT_ONCE):
            views.append(it.engine.view())
            time.sleep(0)
        for view in views:
            it.compare(view, "a view made and read in another thread")
    finally:
        for view in views:
            view.close()


def _look_at_image(it: Driver, apart: AbstractContextManager[Any]) -> None:
    """Make an image while no checkpoint holds `apart`, and compare copies of it."""
    with apart:
        image = it.engine.image()
    _look_at_copy(it, *_read_out(image), "made in another thread")


def _read_out(image: Image) -> tuple[Position, dict[str, bytes]]:
    """An image's position, and every byte of it. It is closed."""
    try:
        return image.position, read_image(image)
    finally:
        image.close()


def _look_at_copy(it: Driver, image_position: Position, contents: dict[str, bytes], made: str) -> None:
    """A copy of a stable image is the state at its position; a replayed copy, the state after all transactions."""
    if it.work.engine.abilities.image == "stable":
        with closing(it.opened(it.copied(contents), at=image_position)) as copy:
            it.compare_state(copy, image_position.txid, f"a copy of the stable image at {image_position}, {made},")
    with closing(it.recovered(it.copied(contents), at=image_position)) as copy:
        it.compare_state(copy, len(it.records), f"a copy of an image at {image_position}, {made} and replayed,")


@contextmanager
def _threads_change_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
