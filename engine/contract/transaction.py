"""The transaction of an engine: it collects a writer's changes and becomes a payload."""

from __future__ import annotations

import warnings
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Callable
from types import MemberDescriptorType
from typing import Any, Literal

from ..env import REAL
from ..errors import StoreClosed

Durability = Literal["synced", "pipelined", "relaxed"]
"""When a commit returns: see `Settings.durability`."""


class Transaction(ABC):
    """A transaction: changes, made by methods that the author defines, that become one payload.

    A transaction sees the newest state, its own changes included. Keep the changes in its attributes: once it is being
    committed or rolled back, these raise `StoreClosed` for everybody except the kit, so no change is accepted and then
    not logged. Only one thread may use it at a time: a change made by another during a commit may be logged in part.
    """

    __slots__ = ("_kit_state", "_kit_thread", "bulk", "outcome", "txid")

    def __init__(self) -> None:
        self._kit_state: str | None = None
        self._kit_thread: int | None = None
        self.txid: int | None = None
        """The transaction's number, once it has one."""
        self.outcome: Any = None
        """After a `pipelined` commit, a `concurrent.futures.Future` of the txid, done when it is acknowledged. Its
        callbacks run in the store's callback thread, one after the other."""
        self.bulk: Any = None
        """The load, if plugins are asked about a bulk load. The transaction is then empty, and takes no changes."""

    @abstractmethod
    def payload(self) -> bytes:
        """All changes as one payload, empty if there are none. May be called several times while changes are made."""

    def close(self) -> None:  # noqa: B027 - most transactions hold nothing
        """Release what the transaction holds. Called once, however it ended."""

    def writable(self) -> None:
        """Deprecated: does nothing."""
        warnings.warn("writable() is not needed any more, because the kit refuses changes to a transaction that has "
                      "ended; release 0.3 removes it", DeprecationWarning, stacklevel=2)


# --- the kit's ------------------------------------------------------------------------------------------------------

_OPEN = frozenset({"__class__", *Transaction.__slots__})
"""What anybody may use of a transaction that is frozen."""
_FROZEN = "_kit_frozen"
"""Of a class: that of its transactions that are frozen."""
_here = REAL.scheduler.here
# By the descriptors themselves, since an author's class may have attributes, `__setattr__` and a metaclass of its own.
_thread_of: Any = Transaction.__dict__["_kit_thread"].__get__
_set_thread: Any = Transaction.__dict__["_kit_thread"].__set__
_set_state: Any = Transaction.__dict__["_kit_state"].__set__
_set_class: Any = vars(object)["__class__"].__set__


def freeze(tx: Transaction, state: str) -> None:
    """Mark the transaction as `state`. From here on, only this thread may use it. May be called twice."""
    _set_thread(tx, _here())
    kind = type(tx)
    _set_class(tx, kind.__dict__.get(_FROZEN) or _frozen(kind))
    _set_state(tx, state)  # last: if a signal handler raises before this, the block finds no state and ends it


def end(tx: Transaction, state: str) -> None:
    """Close the transaction, and mark it as `state`. Nobody may use it after this, not even this thread."""
    kind = type(tx)
    if kind.__dict__.get(_FROZEN) is kind:
        _set_state(tx, state)
    else:
        freeze(tx, state)
    try:
        type(tx).close(tx)
    finally:
        _set_thread(tx, None)


class _Untold:
    """Before a class in a list of bases: its `__init_subclass__` is not called. It may want arguments, or refuse."""

    __slots__ = ()

    def __init_subclass__(cls, **named: Any) -> None:
        """Do nothing."""


def _frozen(kind: type[Transaction]) -> type[Transaction]:
    """The class that a transaction of this kind gets when it is frozen. It checks the thread at each use of an
    attribute. So an open transaction pays nothing, and no method gets round the check, not even a bound method that was
    fetched before, or one called through the class."""
    body: dict[str, Any] = {"__slots__": (), "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        found.update(vars(base))
    slots = {name: slot for base in kind.__mro__ if base is not Transaction for name, slot in vars(base).items()
             if isinstance(slot, MemberDescriptorType)}
    if kind.__dictoffset__ or any(found[name] is not slot for name, slot in slots.items()):
        for name in ("__getattribute__", "__setattr__", "__delattr__"):
            body[name] = _guarded(getattr(kind, name), _OPEN)
    else:  # the same protection, at no cost for other attributes
        for name, slot in slots.items():
            body[name] = property(_guarded(slot.__get__), _guarded(slot.__set__), _guarded(slot.__delete__))
    if "__del__" in found:
        body["__del__"] = _dying(found["__del__"])
    # Past the author's metaclass, which may want arguments or keep a list of its classes.
    frozen = ABCMeta.__new__(type(kind), kind.__name__, (_Untold, kind), body)
    for of in (frozen, kind):
        type.__setattr__(of, _FROZEN, frozen)
    return frozen


def _dying(last: Any) -> Callable[..., None]:
    """An author's `__del__`, which is called when nobody else has the transaction any more."""
    def __del__(tx: Transaction) -> None:
        _set_thread(tx, _here())
        last(tx)

    return __del__


def _guarded(use: Any, open_names: frozenset[str] = frozenset()) -> Callable[..., Any]:
    """`use`, restricted to the thread that froze the transaction, except for `open_names` as its first argument."""
    def guarded(tx: Transaction, *what: Any) -> Any:
        if _thread_of(tx) == _here() or (open_names and what[0] in open_names):
            return use(tx, *what)
        raise StoreClosed(f"this transaction is {tx._kit_state or 'being committed'}",
                          hint="begin another with store.transaction()")

    return guarded
