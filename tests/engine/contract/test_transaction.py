"""A transaction that ended refuses everybody, whatever its author wrote and however it keeps its changes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from holdfast.engine.contract.transaction import Transaction, end, seal
from holdfast.engine.errors import StoreClosed


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


def test_one_that_is_sealed_is_one_thread_s(tx: Any) -> None:
    put, wrong = tx.put, list[BaseException]()
    seal(tx, "being committed")

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
    seal(tx, "still being committed")
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
