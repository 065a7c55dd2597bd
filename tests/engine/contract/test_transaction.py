"""A transaction that ended refuses everybody, whatever its author wrote and however it keeps its changes."""

from __future__ import annotations

import gc
import threading
from abc import ABCMeta
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import pytest

from holdfast.engine.contract.transaction import Transaction, end, freeze
from holdfast.engine.errors import StoreClosed

T = TypeVar("T")


class Plain(Transaction):
    """Attributes in a dictionary; and its author forgot what the base class says."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: dict[str, int] = {}
        self.last: str | None = None
        self.closed = 0

    def put(self, key: str, value: int) -> None:
        self.changes[key] = value

    def assign(self, key: str) -> None:
        self.last = key

    def forget(self) -> None:
        del self.last

    __setitem__ = put

    def payload(self) -> bytes:
        return repr((self.changes, self.last)).encode()

    def close(self) -> None:
        self.closed += 1


class Marked:
    __slots__ = ()

    def put(self, key: str, value: int) -> None:
        self.changes[key] = value  # type: ignore[attr-defined]


class Slotted(Marked, Transaction):
    """Attributes in slots, one of them private; methods of another class."""

    __slots__ = ("__last", "changes", "closed")

    def __init__(self) -> None:
        super().__init__()
        self.changes: dict[str, int] = {}
        self.closed = 0
        self.__last: str | None = None

    def assign(self, key: str) -> None:
        self.__last = key

    def forget(self) -> None:
        del self.__last

    def __setitem__(self, key: str, value: int) -> None:
        self.put(key, value)

    def payload(self) -> bytes:
        return repr((self.changes, self.__last)).encode()

    def close(self) -> None:
        self.closed += 1


class Derived(Slotted):
    """Slots of its base, and a dictionary."""


@pytest.fixture(params=[Plain, Slotted, Derived])
def tx(request: pytest.FixtureRequest) -> Any:
    made: Any = request.param()
    made.put("a", 1)
    return made


def refuses(tx: Any, put: Any, state: str) -> None:
    for call in (lambda: tx.put("b", 2), lambda: put("b", 2), lambda: type(tx).put(tx, "b", 2),
                 lambda: tx.assign("b"), lambda: tx.forget(), lambda: tx.__setitem__("b", 2),
                 lambda: setattr(tx, "changes", {}), lambda: tx.payload(), lambda: tx.close()):
        with pytest.raises(StoreClosed, match=state):
            call()
    with pytest.raises(StoreClosed, match=state):
        tx["b"] = 2


def test_one_that_ended_refuses_every_change(tx: Any) -> None:
    kind, put, changes = type(tx), tx.put, tx.changes
    end(tx, "ended")
    refuses(tx, put, "ended")
    assert changes == {"a": 1}
    assert isinstance(tx, kind)
    assert (tx.txid, tx.outcome, tx.bulk) == (None, None, None)
    tx.outcome = "what the kit says"


def test_one_that_is_frozen_is_one_thread_s(tx: Any) -> None:
    put, wrong = tx.put, list[BaseException]()
    freeze(tx, "being committed")

    def other() -> None:
        try:
            refuses(tx, put, "being committed")
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert not wrong
    tx.assign("mine")
    assert tx.payload() == b"({'a': 1}, 'mine')"
    tx.txid = 7
    freeze(tx, "still being committed")
    end(tx, "ended")
    assert tx.txid == 7
    refuses(tx, put, "ended")


def test_it_is_closed_once_and_nobody_s_even_if_that_fails(tx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr(type(tx), "close", fails)
    put = tx.put
    with pytest.raises(OSError, match="no"):
        end(tx, "ended")
    monkeypatch.undo()
    refuses(tx, put, "ended")


def test_others_of_its_class_are_as_they_were(tx: Any) -> None:
    other = type(tx)()
    end(tx, "ended")
    other.put("c", 3)
    assert other.changes == {"c": 3}


def test_an_engine_that_still_calls_writable_is_told() -> None:
    with pytest.warns(DeprecationWarning, match="not needed any more"):
        Plain().writable()


# --- classes that authors write -------------------------------------------------------------------------------------


class Wanting(ABCMeta):
    """A metaclass that wants an argument, knows every class by its name, and takes no attributes later."""

    known: ClassVar[set[str]] = set()

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], *, table: str) -> Any:
        assert table not in cls.known, "two classes of one table"
        cls.known.add(table)
        return super().__new__(cls, name, bases, body)

    def __init__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], *, table: str) -> None:
        super().__init__(name, bases, body)

    def __setattr__(cls, name: str, value: Any) -> None:
        if not name.startswith(("_abc", "__")):
            raise TypeError("this class is finished")
        super().__setattr__(name, value)


class Base(Transaction):
    def __init__(self) -> None:
        super().__init__()
        self.change = b""

    def put(self, value: bytes) -> None:
        self.change = value

    def payload(self) -> bytes:
        return self.change


def of_a_metaclass() -> Any:
    class Of(Base, metaclass=Wanting, table=str(len(Wanting.known))):
        pass

    return Of


def final() -> Any:
    class Final(Base):
        def __init_subclass__(cls, *, of: str) -> None:
            assert of == "the author's"

    class Last(Final, of="the author's"):
        pass

    return Last


def recording() -> Any:
    class Recording(Base):
        """Each attribute that is set is a change."""

        def __setattr__(self, name: str, value: Any) -> None:
            object.__setattr__(self, name, value)
            if name not in ("change", *Transaction.__slots__):
                self.change += name.encode()

    return Recording


def with_names_of_the_kit() -> Any:
    class Named(Base):
        __slots__ = ("_is_sealed", "_state", "_thread")

        def _sealed(self) -> None:
            """The author's."""

    return Named


def with_a_slot_overridden() -> Any:
    class Slotted(Transaction):
        __slots__ = ("change", "depth")

        def __init__(self) -> None:
            super().__init__()
            self.change: bytes = b""

        def put(self, value: bytes) -> None:
            self.change = value

        def payload(self) -> bytes:
            return bytes(self.change * int(self.depth))  # type: ignore[attr-defined]

    class Derived(Slotted):
        __slots__ = ()
        depth = 1

    return Derived


def generic() -> Any:
    class Of(Base, Generic[T]):
        __slots__ = ()

    return Of[int]


@pytest.mark.parametrize("make", [of_a_metaclass, final, recording, with_names_of_the_kit, with_a_slot_overridden,
                                  generic])
def test_a_class_of_any_sort_is_frozen(make: Callable[[], Any]) -> None:
    """The kit makes a class of frozen transactions at the first commit. It called the author's metaclass and
    `__init_subclass__` for it, set `__class__` through the author's `__setattr__`, took an author's `_sealed` for its
    own, and put a slot in place of what a derived class had in its stead. So each commit of such an engine failed, or
    logged what nobody had written."""
    kind = make()
    for _ in range(2):
        tx = kind()
        tx.put(b"x")
        freeze(tx, "being committed")
        assert tx.payload() == b"x"
        assert issubclass(type(tx), Transaction)
        end(tx, "ended")
        with pytest.raises(StoreClosed, match="this transaction is ended"):
            tx.put(b"y")


def test_a_transaction_that_ended_can_still_clean_up_as_it_goes() -> None:
    """Its `__del__` was refused as anybody is, and Python printed that for each transaction."""
    gone = []

    class Cleaning(Base):
        def __del__(self) -> None:
            gone.append(self.change)

    tx = Cleaning()
    tx.put(b"x")
    end(tx, "rolled back")
    del tx
    gc.collect()
    assert gone == [b"x"]
