"""Tokens: small numbers that stand for names in everything stored.

Each label, edge type and property key has one. So has every set of labels that a node has had, so that a node's labels
are one number. All kinds share one counter, from 1 up. 0 means "none", for instance a node that does not exist. Tokens
never change and are never reused. So one table serves every view: a token that is newer than a view is not used by
anything in it.
"""

from __future__ import annotations

LABEL, TYPE, KEY, LABELS = "l", "t", "k", "s"
Value = str | tuple[int, ...]


class Tokens:
    """The table. Read by any thread while the writer adds: single dict operations, which the interpreter lock makes
    atomic, and copies before iterating.

    Attributes:
        ids: (kind, value) to token. The value is the name; for a set of labels, their tokens, ascending.
        values: token to (kind, value).
        names: token to name, of everything but sets of labels.
        highest: the highest token in the table; 0 if it is empty.
        types: the tokens of edge types; replaced, never changed.
    """

    __slots__ = ("_sets", "highest", "ids", "names", "types", "values")

    def __init__(self) -> None:
        self.ids: dict[tuple[str, Value], int] = {}
        self.values: dict[int, tuple[str, Value]] = {}
        self.names: dict[int, str] = {}
        self.highest = 0
        self.types: list[int] = []
        self._sets: dict[int, tuple[str, ...]] = {}

    def add(self, token: int, kind: str, value: Value) -> None:
        self.values[token] = (kind, value)
        if isinstance(value, str):
            self.names[token] = value
        self.highest = max(self.highest, token)
        if kind == TYPE and token not in self.types:
            self.types = [*self.types, token]
        self.ids[kind, value] = token

    def cut(self, end: int) -> None:
        """Remove the tokens from `end` on, which belong to a transaction that was rolled back."""
        if self.highest >= end:
            for token in [token for token in self.values if token >= end]:
                del self.ids[self.values.pop(token)]
                self.names.pop(token, None)
                self._sets.pop(token, None)
            self.types = [token for token in self.types if token < end]
            self.highest = end - 1

    def name(self, token: int) -> str:
        """The name of a label, type or key. Raises `KeyError` if there is none."""
        return self.names[token]

    def label_tokens(self, labels: int) -> tuple[int, ...]:
        """The labels in a set of labels. Raises `KeyError` if there is no such set."""
        kind, value = self.values[labels]
        if kind != LABELS:
            raise KeyError(labels)
        return value  # type: ignore[return-value]

    def label_names(self, labels: int) -> tuple[str, ...]:
        """The names in a set of labels, sorted. Raises `KeyError`."""
        names = self._sets.get(labels)
        if names is None:
            names = self._sets[labels] = tuple(sorted(self.name(token) for token in self.label_tokens(labels)))
        return names

    def of_kind(self, kind: str) -> list[int]:
        return [token for token, (k, _) in list(self.values.items()) if k == kind]
