"""Animals that are right for what is small and plain: short keys, short values, small states, few transactions, and
calls that are not refused."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
from workloads import keyed
from zoo import altered, animal

from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.contract.engine import Context
from holdfast.engine.contract.image import Image
from holdfast.engine.errors import InvalidInput
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record
from holdfast.engine.testing import KeyValues, Operation, Workload
from holdfast.engine.toolkit.file_image import FileImage
from holdfast.engine.toolkit.keyed_transaction import changes_of
from holdfast.engine.toolkit.state_file import read_state, write_state

# --- sizes -----------------------------------------------------------------------------------------------------------


class Roomy(MemoryEngine):
    """Keys and values of any size."""

    class Tx(MemoryTransaction):
        def put(self, key: bytes, value: bytes) -> None:
            self.changes[key] = value

    class View(MemoryView):
        def check(self) -> Iterator[str]:
            return iter(())

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)

    def view(self) -> MemoryView:
        view = super().view()
        return self.View(view._state, view.txid)


@animal(caught_by="EngineContract.test_keys_and_values_of_every_size")
class CutsKeys(Roomy):
    """A key has a length of one byte on the disk, so longer ones are cut. Two long keys that begin alike are one."""

    class Tx(Roomy.Tx):
        def put(self, key: bytes, value: bytes) -> None:
            super().put(key[:255], value)


@animal(caught_by="EngineContract.test_keys_and_values_of_every_size")
class WrapsLengths(Roomy):
    """A value's length is written in two bytes, and the rest of a long one goes with the next checkpoint. Until then
    it is read from memory, where it is whole."""

    def checkpoint(self, upto: Position) -> Position:
        kept = self._state
        self._state = {key: value[: len(value) & 0xFFFF] for key, value in kept.items()}
        reached = super().checkpoint(upto)
        self._state = kept
        return reached


@animal(caught_by="EngineContract.test_keys_and_values_of_every_size")
class StructError(Roomy):
    """The length of a value is packed into two bytes, and nobody has asked whether it fits. The user gets an error of
    a module that they have never heard of."""

    class Tx(Roomy.Tx):
        def put(self, key: bytes, value: bytes) -> None:
            struct.pack("<H", len(value))
            super().put(key, value)


@animal(caught_by="EngineContract.test_keys_and_values_of_every_size")
class TooLateToRefuse(Roomy):
    """A key that is too long is found when the transaction's payload is made. By then the user believes that it was
    taken, and the commit ends with an error that no commit should end with."""

    class Tx(Roomy.Tx):
        def payload(self) -> bytes:
            if any(len(key) > 4096 for key in self.changes):
                raise OverflowError("a key is too long")
            return super().payload()


@animal(caught_by="EngineContract.test_keys_and_values_of_every_size")
class LargestOfAll(Roomy):
    """The longest value that is taken has 3,010 bytes, and the buffer that it is copied to has one less. Nobody has
    tried just that size."""

    class Tx(Roomy.Tx):
        def put(self, key: bytes, value: bytes) -> None:
            if len(value) > 3010:
                raise InvalidInput("a value has at most 3,010 bytes")
            super().put(key, value[:3009])


@animal(caught_by="EngineContract.test_a_large_state_is_whole")
class MisplacedPiece(MemoryEngine):
    """A checkpoint is written in pieces of 1 MiB. Each begins where the one before was said to end, which is one byte
    early, and the checksum is of what was written."""

    def checkpoint(self, upto: Position) -> Position:
        kept, room = self._state, 1 << 20
        for key, value in kept.items():
            room -= len(key) + len(value)
            if room < 0:
                self._state = {**kept, key: value[1:] + value[:1]}
                break
        reached = super().checkpoint(upto)
        self._state = kept
        return reached


class FirstPieceOnly(FileImage):
    """An image that reads every piece behind its first 4 MiB from there."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        return super().read(name, offset if offset < 4 << 20 else offset - 1, length)


@animal(caught_by="EngineContract.test_a_large_state_is_whole")
class ImageOfOnePiece(MemoryEngine):
    """An image is read in pieces of 4 MiB, and its author has never had one that was larger. The second piece begins
    one byte early."""

    def image(self) -> Image:
        return FirstPieceOnly(self._env, self._directory, ("state",), self._position)


@animal(caught_by="EngineContract.test_many_transactions_lose_nothing")
class CountsInOneByte(MemoryEngine):
    """Transactions are kept by the last byte of their number until the next checkpoint. The 256th takes the place of
    one that is still needed."""

    def apply(self, records: Sequence[Record]) -> None:
        super().apply([altered(record, []) if record.txid % 256 == 0 else record for record in records])


@animal(caught_by="EngineContract.test_a_transaction_of_many_changes_is_whole")
class FirstChanges(MemoryEngine):
    """A table of 512 places holds what a transaction changes, and what is behind it is dropped."""

    def apply(self, records: Sequence[Record]) -> None:
        super().apply([altered(record, changes_of(record)[:512]) for record in records])


@animal(caught_by="EngineContract.test_a_refused_call_changes_nothing")
class RefusedAndDone(MemoryEngine):
    """A value is put where it belongs, and then it is asked whether it was allowed. Whoever handles the refusal and
    commits the rest commits it too."""

    class Tx(MemoryTransaction):
        def put(self, key: bytes, value: bytes) -> None:
            if key:
                self.changes[key] = value[:100]
            super().put(key, value)

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)


@animal(caught_by="EngineContract.test_a_refused_call_changes_nothing")
class RefusedAndEmptied(MemoryEngine):
    """A refusal takes back all that the transaction did before, as some databases do, and does not say so."""

    class Tx(MemoryTransaction):
        def put(self, key: bytes, value: bytes) -> None:
            try:
                super().put(key, value)
            except InvalidInput:
                self.changes.clear()
                raise

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)


# --- reading ---------------------------------------------------------------------------------------------------------


class OrderedView(MemoryView):
    """A view with prefixes, ranges, and a count."""

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return ((key, value) for key, value in self.ordered() if key.startswith(prefix))

    def range(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        return ((key, value) for key, value in self.ordered() if low <= key < high)

    def ordered(self) -> list[tuple[bytes, bytes]]:
        return sorted(self._state.items())


class Ordered(MemoryEngine):
    """The memory engine, whose views are read in more ways."""

    View: type[OrderedView] = OrderedView

    def view(self) -> OrderedView:
        view = super().view()
        return self.View(view._state, view.txid)


def ordered() -> Workload:
    return keyed(Ordered, scan=lambda view, prefix: view.scan(prefix), count=len,
                 range=lambda view, low, high: view.range(low, high))


reads = partial(animal, caught_by="EngineContract.test_every_way_of_reading_shows_one_content", on=ordered)


@reads()
class RangeToTheLast(Ordered):
    """A range ends before the last key of all, since its end is looked for between two keys."""

    class View(OrderedView):
        def range(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
            pairs = self.ordered()
            keys = [key for key, _ in pairs]
            return iter(pairs[bisect_left(keys, low) : min(bisect_left(keys, high), len(pairs) - 1)])


@reads()
class ScanToHighest(Ordered):
    """The end of a prefix is the prefix and the highest byte. Keys that go on with two of these are behind it."""

    class View(OrderedView):
        def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
            return self.range(prefix, prefix + b"\xff")


@reads()
class CountsPuts(Ordered):
    """The count is of what was ever there: a deletion does not take one off."""

    ever: frozenset[bytes] = frozenset()

    class View(OrderedView):
        ever: frozenset[bytes] = frozenset()

        def __len__(self) -> int:
            return len(self.ever | self._state.keys())

    def view(self) -> OrderedView:
        view = super().view()
        self.ever = view.ever = self.ever | view._state.keys()  # type: ignore[attr-defined]
        return view


@reads()
class FindsTheNext(Ordered):
    """A look-up seeks the key, and does not compare what it finds there: the first key that is not below it."""

    class View(OrderedView):
        def get(self, key: bytes) -> bytes | None:
            return next((value for found, value in self.ordered() if found >= key), None)


@reads()
class EndsAtNul(Ordered):
    """Keys go through a library of C, to which a NUL is the end: `k` and `k` with a NUL behind it are one key."""

    def apply(self, records: Sequence[Record]) -> None:
        super().apply([altered(record, [(key.partition(b"\0")[0] or key, value) for key, value in changes_of(record)])
                       for record in records])


@animal(caught_by="EngineContract.test_a_walk_goes_on_while_others_write")
class LiveWalk(MemoryEngine):
    """A walk takes ten pairs at a time, and looks up where it was in what is newest by then. Whoever reads all of it
    at once, as most tests do, sees nothing."""

    class View(MemoryView):
        engine: MemoryEngine

        def items(self) -> Iterator[tuple[bytes, bytes]]:
            held = sorted(self._state.items())
            for at in range(0, len(held), 10):
                yield from held[at : at + 10]
                if self.engine._state is not self._state:
                    held = sorted(self.engine._state.items())

    def view(self) -> MemoryView:
        made = self.View((view := super().view())._state, view.txid)
        made.engine = self
        return made


# --- ids and formats -------------------------------------------------------------------------------------------------

_NEXT = b"next"


class Tickets(MemoryEngine):
    """Values by numbers that it gives out. The next number is kept beside them, and shown to nobody."""

    class Tx(MemoryTransaction):
        def add(self, value: bytes) -> int:
            number = int(self.get(_NEXT) or b"1")
            self.put(_NEXT, b"%d" % (number + 1))
            self.put(b"#%d" % number, value)
            return number

    class View(MemoryView):
        def items(self) -> Iterator[tuple[bytes, bytes]]:
            return ((key, value) for key, value in super().items() if key != _NEXT)

        def digest(self) -> bytes:
            return MemoryView(dict(self.items()), self._txid).digest()

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)

    def view(self) -> MemoryView:
        view = super().view()
        return self.View(view._state, view.txid)


class TicketWorkload(KeyValues):
    """Adds values, and deletes the newest one or another."""

    def __init__(self) -> None:
        super().__init__(Tickets, put=Tickets.Tx.put, items=lambda view: view.items(), tiny={})

    def run(self, tx: Any, model: dict[Any, Any], operations: list[Operation]) -> None:
        for kind, *rest in operations:
            given = model.setdefault("given", 0)
            if kind == "set" and len(model) > 1:
                number = max(key for key in model if key != "given")
                tx.delete(b"#%d" % number)
                del model[number]
            elif kind in ("put", "try"):
                number = tx.add(rest[-1])
                assert number > given, f"number {number} was given out before"
                model["given"], model[number] = number, rest[-1]

    def expected(self, model: dict[Any, Any]) -> dict[Any, Any]:
        return {b"#%d" % key: value for key, value in model.items() if key != "given"}


@animal(caught_by="EngineContract.test_ids_of_durable_transactions_never_return", on=TicketWorkload)
class LostMark(Tickets):
    """An image holds what readers see, and is made by reading it. So the next number is not in it, and who opens a copy
    begins behind the highest number that is there: that of a ticket which was deleted is given out again."""

    def image(self) -> Image:
        shown = dict(Tickets.View(read(self._context, self._directory), 0).items())
        if shown:
            shown[_NEXT] = b"%d" % (1 + max(int(key[1:]) for key in shown))
        write_state(self._context, self._directory / "image", b"HFMEMORY", 1, self._position, msgpack.packb(shown))
        return Renamed(self._env, self._directory, ("image",), self._position)


class Renamed(FileImage):
    """A file under the name of the state."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.files = [type(file)("state", file.size) for file in self.files]

    def read(self, name: str, offset: int, length: int) -> bytes:
        return super().read("image", offset, length)


def read(context: Context, directory: Path) -> Mapping[bytes, bytes]:
    state: Mapping[bytes, bytes] = msgpack.unpackb(read_state(context, directory / "state", b"HFMEMORY", 1)[1])
    return state


@animal(caught_by="EngineContract.test_a_state_of_another_format_is_refused")
class OpensTheFuture(MemoryEngine):
    """A state that is older than the code is refused. One that is newer is tried, in the hope that it can be read."""

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        data = (directory / "state").read_bytes()
        (version,) = struct.unpack_from("<I", data, 8)
        newer = type(cls.__name__, (MemoryEngine,), {"state_format": max(version, cls.state_format)})
        return newer.open.__func__(newer, directory, context, **how)  # type: ignore[attr-defined]


# --- keys and values that are more than their size --------------------------------------------------------------------


@animal(caught_by="EngineContract.test_awkward_keys_and_values_are_what_they_were")
class TranslatesLineEnds(MemoryEngine):
    """The state file is opened as a text by a library that makes the ends of lines what they should be. Until the next
    opening, everything is as it was put."""

    def checkpoint(self, upto: Position) -> Position:
        kept = self._state
        self._state = {key.replace(b"\r\n", b"\n"): value for key, value in kept.items()}
        reached = super().checkpoint(upto)
        self._state = kept
        return reached


@animal(caught_by="EngineContract.test_awkward_keys_and_values_are_what_they_were")
class FixedWidth(MemoryEngine):
    """Values are in an array of NumPy, whose type for bytes fills them with NULs, and cannot tell these from their
    own."""

    def checkpoint(self, upto: Position) -> Position:
        kept = self._state
        self._state = {key: value.rstrip(b"\0") for key, value in kept.items()}
        reached = super().checkpoint(upto)
        self._state = kept
        return reached


@animal(caught_by="EngineContract.test_what_was_given_is_not_changed_from_outside")
class KeepsWhatItWasGiven(MemoryEngine):
    """A `bytearray` is as good as bytes, and is kept until the commit. Its owner reads the next block of a file into it
    meanwhile."""

    class Tx(MemoryTransaction):
        def put(self, key: bytes, value: bytes) -> None:
            super().put(key, bytes(value))
            self.changes[key] = value

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)
