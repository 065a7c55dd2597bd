"""Sizes and numbers: of keys, values, states, images and transactions, at and around the limits that engines have.

Lengths of one byte and of two, blocks of 512 and 4,096 bytes, pieces of 1 and 4 MiB: what is right on either side of
such a limit is wrong at it more often than anywhere else. What the engine itself refuses is found by asking it.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import SkipTest

from ...contract.image import Image
from ...contract.transaction import Transaction
from ..support.alike import alike
from ..support.contract import Contract, check
from ..support.crash_images import read_image
from ..support.driver import Driver, driven
from ..support.limits import sized_like, would_take
from ..support.not_tried import not_tried
from ..support.tried import Tried
from ..support.ways import short
from ..support.workload import KeyValues, Workload, sampled

_KIB, _MIB = 1 << 10, 1 << 20
SIZES = (0, 1, 127, 128, 255, 256, 257, 511, 512, 4095, 4096, 4097, 65_535, 65_536, 65_537, _MIB, _MIB + 1)
_BITS = (7, 8, 15, 16, 31, 32, 63, 64)
NUMBERS = (0, 1, -1, *sorted({sign * (1 << bits) + by for bits in _BITS for sign in (1, -1) for by in (-1, 0, 1)}))
_LETTERS = "aé漢😀"
_LARGE = 3 * _MIB // 2
"""Bytes that one transaction of a large state adds: a checkpoint of it is over 1 MiB."""
_TIMES = 3
_PIECES = (4 * _MIB, _MIB + 1, 100_003)
"""Bytes of an image that are read at a time: as backups do, and so that pieces begin anywhere."""
_CHECKPOINTS = 260
_OPENED = (*range(5, 12), *range(94, 102), *range(251, _CHECKPOINTS + 1))
"""After which of them a copy of the state is opened: 9, 10, 99, 100, 255 and 256, wherever the engine counts from."""
_BATCH, _AT_ONCE = 1000, 70_000
"""Transactions that are applied at once, and the keys that they write, one after the other."""


class SizeChecks(Contract):
    """See the module's text."""

    @check()
    def test_keys_and_values_of_every_size(self, work: Workload) -> None:
        """Bytes and texts of 0 to 1 MiB and just above, and numbers of up to 64 bits and just above, are taken as keys
        and as values and then shown whole by every way of reading, or they are refused with `InvalidInput`, and the
        transaction is as it was. The largest size that is taken is found by trying, and is shown whole too."""
        pairs = of_pairs(work)
        with driven(work) as it:
            tried = Tried(it, pairs)

            def taken_at(series: _Series, size: int) -> bool:
                return tried.put(partial(series.pair, size), series.told(size))

            for series in _series(pairs):
                taken = [n for n, size in enumerate(series.sizes) if taken_at(series, size)]
                if not series.is_long or not taken or taken[-1] == len(series.sizes) - 1:
                    continue
                low, high = series.sizes[taken[-1]], series.sizes[taken[-1] + 1]
                while high - low > 1:
                    middle = (low + high) // 2
                    if would_take(it.engine, pairs.takes, *series.pair(middle, tried.number)):
                        low = middle
                    else:
                        high = middle
                assert taken_at(series, low), f"{series.told(low)} is taken, and refused in another transaction"
                assert not taken_at(series, high), f"{series.told(high)} is refused, and taken in another transaction"
            tried.look()
            tried.change()
            tried.look()

    @check()
    def test_a_large_state_is_whole(self, work: Workload) -> None:
        """A state of several MiB is shown whole: after a checkpoint of more than 1 MiB, after a kill before and after
        it, and in a copy of its image. The image reads the same in pieces of any size."""
        work = work.at_full_size()
        with driven(work) as it:
            for seed in range(_TIMES):
                operations = work.sized(_LARGE, seed)
                if operations is None:
                    why = "the workload has no sized()"
                    not_tried("large states, and images of several pieces", why)
                    raise SkipTest(f"{why}, so the suite cannot make a large state")
                it.commit(operations)
                it.commit(work.examples[seed])
                if seed == 1:  # all that is not in a checkpoint is replayed
                    it.reopen()
                    it.compare_state(what=f"a state of {2 * _LARGE:,} bytes, killed before its checkpoint,")
                    continue
                it.checkpoint()
                it.commit(work.numbered(seed))
            with contextlib.closing(it.recovered(it.killed())) as killed:
                it.compare_state(killed, what=f"a state of {_TIMES * _LARGE:,} bytes, killed after its checkpoint,")
            it.checkpoint()
            image = it.engine.image()
            with contextlib.closing(image):
                contents = read_image(image)
                for piece in _PIECES:
                    for name, found in _read_in_pieces(image, piece):
                        at = _differs(found, contents[name])
                        assert at is None, (f"the image's {name}, read in pieces of {piece:,} bytes, is not what it is "
                                            f"when it is read at once, from byte {at:,} on")
                position = image.position
            with contextlib.closing(it.recovered(it.copied(contents), at=position)) as copy:
                it.compare_state(copy, what=f"a copy of the image of a state of {_TIMES * _LARGE:,} bytes")

    @check()
    def test_a_transaction_of_many_changes_is_whole(self, work: Workload) -> None:
        """A transaction that makes five thousand changes (10,000 in `ci`) shows each of them, before and after a kill,
        a checkpoint and a copy."""
        changes = self.effort.changes
        with driven(work) as it:
            it.commit(work.numbered(0))
            it.commit([operation for n in range(1, changes + 1) for operation in work.numbered(n)])
            what = f"after a transaction of {changes:,} changes"
            it.compare_state(what=f"a view {what}")
            it.reopen()
            it.compare_state(what=f"a view {what} and a kill")
            it.checkpoint()
            it.reopen()
            it.commit(work.numbered(changes + 1))
            it.compare_state(what=f"a view {what}, a checkpoint and a kill")
            with contextlib.closing(it.recovered(it.copied(it.image()), at=it.engine.position)) as copy:
                it.compare_state(copy, what=f"a copy {what}")

    @check()
    def test_many_transactions_lose_nothing(self, work: Workload) -> None:
        """After 300 small transactions, one by one, everything is there: also where a kill or a checkpoint comes before
        and after the 255th, the 256th and the 257th. So it is after 260 checkpoints. About the 10th, the 100th and
        the 256th of them, the state is at the last one without any log. In `ci`, 70,000 more transactions come in
        batches, with a kill in their middle."""
        with driven(work) as it:
            for n in range(300):
                it.commit(work.numbered(n))
                if n in (253, 255, 257, 299):
                    it.compare_state(what=f"a view after {n + 1} transactions")
                    it.reopen()
                    it.compare_state(what=f"a view after {n + 1} transactions and a kill")
                if n in (254, 256, 298):
                    it.checkpoint()
            for n in range(1, _CHECKPOINTS + 1):
                it.commit([*work.examples[n % len(work.examples)], *work.numbered(300 + n)])
                it.checkpoint()
                if n in _OPENED:
                    with contextlib.closing(it.opened(it.killed())) as killed:
                        at = killed.position
                        assert at == it.end, f"after {n} checkpoints, the last one at {it.end}, the state opens at {at}"
                        it.compare_state(killed, what=f"the state after {n} checkpoints, opened without any log,")
            _run_on(it, self.effort.transactions - 300)

    @check()
    def test_a_refused_call_changes_nothing(self, work: Workload) -> None:
        """What a transaction refuses with `InvalidInput` leaves no trace: at its beginning, between other changes and
        at its end, the transaction answers, its payload, the digest and the content are those of one that was never
        asked. Tried are the calls of `refused=`, and the keys and values that the engine does not take."""
        pairs = of_pairs(work)
        with driven(work) as it, driven(work) as other:
            calls = _refusals(pairs, it)
            if not calls:
                why = "the workload names none with refused=, and the engine refuses no key or value that was tried"
                not_tried("calls that are refused", why)
                raise SkipTest(why)
            for number, (what, call) in enumerate(calls.items()):
                asked = [work.numbered(2 * number + n) for n in (1, 2)] + [work.examples[n] for n in (0, 1, 2)]
                payloads: list[bytes] = []
                for here, asks in ((other, False), (it, True)):
                    model = here.models[-1].copy()
                    tx = here.engine.begin()
                    for operations in [[], *asked]:
                        work.run(tx, model, operations)
                        if asks:
                            _ask(pairs, tx, model, what, call)
                    payloads.append(tx.payload())
                    here.apply(here.note(payloads[-1], model))
                    tx.close()
                assert payloads[0] == payloads[1], f"{what} was refused, and the transaction's payload shows that"
                it.compare_state(what=f"a view after {what} was refused")
            assert it.digest() == other.digest(), "refused calls changed the digest"
            it.checkpoint()
            it.reopen()
            it.compare_state(what="a view after refused calls, a checkpoint and a kill")


def of_pairs(work: Workload) -> KeyValues:
    """A workload whose keys and values the suite knows. Any other is skipped."""
    if isinstance(work, KeyValues):
        return work
    why = "the workload is not a KeyValues, so the suite does not know what its keys and values are"
    not_tried("keys and values of every size, ways of reading, refused calls", why)
    raise SkipTest(why)


@dataclass(frozen=True, slots=True)
class _Series:
    """Keys or values of one type, of many sizes; `sizes` of numbers are these themselves."""

    work: KeyValues
    of: str
    kind: type
    make: Callable[[int], Any]
    sizes: tuple[int, ...]

    @property
    def is_long(self) -> bool:
        return self.kind is not int

    def pair(self, size: int, number: int) -> tuple[Any, Any]:
        """A key and a value, one of them of the size. The other is of the number."""
        key, value = self.work.number(number)
        return (self.make(size), value) if self.of == "key" else (key, self.make(size))

    def told(self, size: int) -> str:
        unit: dict[type, str] = {bytes: "bytes", str: "characters"}
        return f"a {self.of} of {size:,} {unit[self.kind]}" if self.is_long else f"the {self.of} {size:,}"


def _first(of: Any, size: int) -> Any:
    return of[:size]


def _series(work: KeyValues) -> Iterator[_Series]:
    keys, values = {type(work.number(0)[0])}, {type(work.number(0)[1])}
    values |= {type(value) for value in sampled(work.values, 30)}
    for of, kinds in (("key", keys), ("value", values)):
        known = [kind for kind in (bytes, str, int) if kind in kinds]
        if not known:
            not_tried(f"{of}s of every size", f"they are neither bytes nor texts nor whole numbers ({kinds.pop()})")
        for kind in known:
            if kind is int:
                yield _Series(work, of, kind, int, NUMBERS)
                continue
            long = sized_like(kind(), SIZES[-1] + 1, random.Random(1))
            yield _Series(work, of, kind, partial(_first, long), SIZES)
            if kind is str:
                letters = "".join(random.Random(1).choices(_LETTERS, k=70_000))
                sizes = tuple(size for size in SIZES if 0 < size <= 65_537)
                yield _Series(work, of, kind, partial(_first, letters), sizes)


def _read_in_pieces(image: Image, piece: int) -> Iterator[tuple[str, bytes]]:
    for file in image.files:
        yield file.name, b"".join(image.read(file.name, at, min(piece, file.size - at))
                                  for at in range(0, file.size, piece))


def _differs(one: bytes, other: bytes) -> int | None:
    """The first byte in which they differ."""
    if one == other:
        return None
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _run_on(it: Driver, count: int) -> None:
    """So many more small transactions, applied in batches. Of a map they are made without the engine's knowing of those
    before them in their batch, since none depends on another."""
    work = it.work
    if count <= 0 or not isinstance(work, KeyValues):
        return
    model, batch = it.models[-1].copy(), []
    for n in range(count):
        key, value = work.number(n % _AT_ONCE)[0], work.number(n)[1]
        tx = it.engine.begin()
        work.put(tx, key, value)
        model[key] = value
        batch.append(it.note(tx.payload(), {}))
        tx.close()
        if len(batch) == _BATCH:
            it.models[-1] = model.copy()
            it.apply(*batch)
            batch = []
        if n == count // 2 // _BATCH * _BATCH + _BATCH - 1:
            it.reopen()
            it.compare_state(what=f"a view after {n + 301:,} transactions and a kill")
            it.checkpoint()
    if batch:
        it.models[-1] = model
        it.apply(*batch)
    it.compare_state(what=f"a view after {count + 300:,} transactions")
    it.checkpoint()
    it.reopen()
    it.compare_state(what=f"a view after {count + 300:,} transactions, a checkpoint and a kill")


def _put(work: KeyValues, key: Any, value: Any, tx: Transaction) -> None:
    work.put(tx, key, value)


def _refusals(work: KeyValues, it: Driver) -> dict[str, Callable[[Transaction], object]]:
    """Calls that an engine refuses: those that are named, and keys and values that it was found not to take."""
    calls: dict[str, Callable[[Transaction], object]] = {
        f"refused[{n}]": call for n, call in enumerate(work.refused)}
    for series in _series(work):
        for size in (series.sizes[0], series.sizes[-1]):
            key, value = series.pair(size, 999)
            if not would_take(it.engine, work.takes, key, value):
                calls[f"put() of {series.told(size)}"] = partial(_put, work, key, value)
    return calls


def _ask(work: KeyValues, tx: Transaction, model: dict[Any, Any], what: str,
         call: Callable[[Transaction], object]) -> None:
    """Make a call that must be refused. The transaction answers as before."""
    before = tx.payload()
    work.refuse(tx, call, what)
    assert tx.payload() == before, f"{what} was refused, and the transaction's payload is another one than before"
    if work.get is not None:
        for key, value in model.items():
            found = work.get(tx, key)
            assert alike(found, value), (
                f"after {what} was refused, the transaction's value of {short(key)} is {short(found)}")
