"""Guessing a workload from the names of an engine's calls: what is taken, what is left out, and that it is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from workloads import keyed

from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.contract.engine import Engine
from holdfast.engine.errors import NotFound, SettingError
from holdfast.engine.testing import EngineContract, KeyValues, check_engine
from holdfast.engine.testing.support.guessed import guess, workload_of


class _Seen(MemoryView):
    def get(self, key: bytes) -> bytes | None:
        found = super().get(key)
        if found is None:
            raise NotFound("no such key")
        return found


class Ordered(_Seen):
    def scan(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """From a key on, which is not what a prefix is."""
        return (pair for pair in sorted(self.items()) if pair[0] >= start + b"\xff")

    def range(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        return (pair for pair in sorted(self.items()) if low <= pair[0] < high)


class Short(Ordered):
    def range(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter(list(super().range(low, high))[:-1])


def shown_by(view: type[MemoryView]) -> type[Engine[Any, Any]]:
    def made(self: Any) -> MemoryView:
        shown = MemoryEngine.view(self)
        shown.__class__ = view
        return shown

    return type("Shown", (MemoryEngine,), {"view": made})


def test_the_engines_of_the_kit_are_understood() -> None:
    memory, sqlite = guess(MemoryEngine), guess(SqliteEngine)
    assert memory.said == ("put=MemoryTransaction.put, get=MemoryTransaction.get, delete=MemoryTransaction.delete, "
                           "items=MemoryView.items, find=MemoryView.get, count=MemoryView.__len__; keys are bytes, "
                           "values bytes; not found: scan, range")
    assert "it writes past the environment" in sqlite.said
    assert (memory.workload.above_env, sqlite.workload.above_env) == (True, False)


def test_a_call_that_may_be_meant_otherwise_is_left_out_and_told() -> None:
    found = guess(shown_by(Ordered))
    assert found.workload.ways.scan is None
    assert "Ordered.scan was left out, since it does not do what scan(prefix)" in found.left_out["scan"]
    assert list(found.left_out) == ["scan"]


def test_a_call_whose_arguments_leave_no_doubt_is_tried_and_not_left_out() -> None:
    work = guess(shown_by(Short)).workload
    assert work.ways.range is not None
    report = check_engine(work, [EngineContract], seed=1, only="*every_way_of_reading*")
    [fault] = report.faults
    assert "range()" in fault.message


def test_a_look_up_that_raises_is_one_that_gives_nothing() -> None:
    report = check_engine(guess(shown_by(Ordered)).workload, [EngineContract], seed=1, only="*every_way_of_reading*")
    assert report.ok, str(report)


def test_what_is_lacking_is_said_with_a_workload_to_write() -> None:
    class Items(MemoryView):
        items = None  # type: ignore[assignment]

    with pytest.raises(SettingError, match=r"Items has no items\(\)") as caught:
        guess(shown_by(Items))
    assert "return KeyValues(Shown," in caught.value.hint


def test_an_engine_that_does_not_open_is_said_to_be_one() -> None:
    class Closed(MemoryEngine):
        @classmethod
        def create(cls, *args: Any) -> None:
            raise ZeroDivisionError("of the author")

    with pytest.raises(SettingError, match="Closed cannot be opened, to look for its calls: ZeroDivisionError"):
        guess(Closed)


def test_values_of_a_kind_that_put_declares() -> None:
    class Texts(MemoryTransaction):
        __slots__ = ()

        def put(self, name: str, text: str) -> None:  # type: ignore[override]
            super().put(name.encode(), text.encode())

        def get(self, name: str) -> str | None:  # type: ignore[override]
            found = super().get(name.encode())
            return None if found is None else found.decode()

    class TextView(MemoryView):
        def items(self) -> Iterator[tuple[str, str]]:  # type: ignore[override]
            return ((key.decode(), value.decode()) for key, value in super().items())

    engine = shown_by(TextView)
    begin = engine.begin

    def texts(self: Any) -> Any:
        tx = begin(self)
        tx.__class__ = Texts
        return tx

    engine.begin = texts  # type: ignore[method-assign]
    assert "keys are str, values str" in guess(engine).said


def test_a_workload_beside_the_engine_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Beside(MemoryEngine):
        pass

    mine = keyed(Beside)
    monkeypatch.setattr(sys.modules[__name__], "workload", lambda: mine, raising=False)
    assert workload_of(Beside) is mine
    assert isinstance(workload_of(MemoryEngine), KeyValues)
    Beside.workload = other = keyed(Beside)  # type: ignore[attr-defined]
    assert workload_of(Beside) is other
