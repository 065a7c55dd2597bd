"""What the engine-neutral tests need to know of an engine: an adapter, and one for each engine of the kit.

An adapter says how to draw random operations, how to run them in a draft and beside it in a plain model, and what a
view shows, in the model's terms. Operations are drawn without knowledge of the state, so that Hypothesis can shrink
them; where one names something that exists it does so by an index, taken modulo what exists when it runs. Draft and
model take each operation together, because the engine gives out the ids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypothesis import strategies as st

from holdfast.engine.contract import Engine, View
from holdfast.engine.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.records import RecordsEngine, RecordsTransaction, RecordsView

Operation = tuple[Any, ...]


class EngineAdapter(ABC):
    """Subclass one for each engine. Models are the adapter's own; the tests copy them and hand them back."""

    engine: ClassVar[type[Engine[Any, Any]]]
    options: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def operations(self) -> st.SearchStrategy[list[Operation]]:
        """The operations of one transaction, at least one; some may turn out to change nothing."""

    @abstractmethod
    def new_model(self) -> Any:
        """The model of an empty store. It has `copy()`."""

    @abstractmethod
    def run(self, tx: Any, model: Any, operations: list[Operation]) -> None:
        """Do `operations` in the draft, and to the model, and compare what the draft answers on the way."""

    @abstractmethod
    def expected(self, model: Any) -> Any:
        """The model's content, comparable."""

    @abstractmethod
    def content(self, view: View) -> Any:
        """A view's content, comparable with `expected`."""


def text_of(seed: int, size: int) -> bytes:
    """`size` bytes that differ from place to place and from seed to seed, so that a misplaced piece shows."""
    return bytes((seed * 31 + i * (i // 7 + 1)) % 256 for i in range(size))


def _pick(index: int, among: Mapping[Any, Any]) -> Any:
    names = sorted(among)
    return names[index % len(names)]


class MemoryAdapter(EngineAdapter):
    engine = MemoryEngine

    def operations(self) -> st.SearchStrategy[list[Operation]]:
        index = st.integers(0, 9)
        values = st.builds(text_of, st.integers(0, 255), st.sampled_from((0, 1, 20, 3000)))
        put = st.tuples(st.just("put"), st.binary(min_size=1, max_size=2), values)
        return st.lists(st.one_of(put, st.tuples(st.just("set"), index, values), st.tuples(st.just("delete"), index)),
                        min_size=1, max_size=6)

    def new_model(self) -> dict[bytes, bytes]:
        return {}

    def run(self, tx: MemoryTransaction, model: dict[bytes, bytes], operations: list[Operation]) -> None:
        for kind, *rest in operations:
            if kind == "put":
                key, value = rest
            elif not model:
                continue
            else:
                key, value = _pick(rest[0], model), rest[-1]
            assert tx.get(key) == model.get(key)
            if kind == "delete":
                tx.delete(key)
                del model[key]
            else:
                tx.put(key, value)
                model[key] = value

    def expected(self, model: dict[bytes, bytes]) -> dict[bytes, bytes]:
        return dict(model)

    def content(self, view: View) -> dict[bytes, bytes]:
        assert isinstance(view, MemoryView)
        content = dict(view.items())
        assert len(view) == len(content)
        return content


@dataclass
class RecordsModel:
    values: dict[int, bytes] = field(default_factory=dict)
    given_out: set[int] = field(default_factory=set)

    def copy(self) -> RecordsModel:
        return RecordsModel(dict(self.values), set(self.given_out))


class RecordsAdapter(EngineAdapter):
    engine = RecordsEngine

    def operations(self) -> st.SearchStrategy[list[Operation]]:
        index = st.integers(0, 9)
        sizes = st.sampled_from((0, 5, 47, 48, 97, 98, 400, 2000))
        values = st.builds(text_of, st.integers(0, 255), sizes)
        return st.lists(st.one_of(st.tuples(st.just("insert"), values), st.tuples(st.just("update"), index, values),
                                  st.tuples(st.just("delete"), index)), min_size=1, max_size=6)

    def new_model(self) -> RecordsModel:
        return RecordsModel()

    def run(self, tx: RecordsTransaction, model: RecordsModel, operations: list[Operation]) -> None:
        for kind, *rest in operations:
            if kind == "insert":
                number = tx.insert(rest[0])
                assert number not in model.given_out, f"number {number} was given out before"
                model.given_out.add(number)
                model.values[number] = rest[0]
            elif model.values:
                number = _pick(rest[0], model.values)
                assert tx.get(number) == model.values[number]
                if kind == "update":
                    tx.update(number, rest[1])
                    model.values[number] = rest[1]
                else:
                    tx.delete(number)
                    del model.values[number]
                    assert tx.get(number) is None

    def expected(self, model: RecordsModel) -> dict[int, bytes]:
        return dict(model.values)

    def content(self, view: View) -> dict[int, bytes]:
        assert isinstance(view, RecordsView)
        content = dict(view.items())
        for number, value in content.items():
            assert view.get(number) == value
        return content
