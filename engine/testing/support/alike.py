"""Whether two contents are the same to a reader: `==` takes True for 1, 1 for 1.0, and -0.0 for 0.0."""

from __future__ import annotations

from typing import Any

_NUMBERS = frozenset({bool, int, float})


def alike(one: Any, other: Any, *, exactly: bool = False) -> bool:
    """Whether two things are equal, with True told from 1, and False from 0. Only Python's own types are told apart:
    those of a library may well stand for them, and so may one container for another.

    Args:
        exactly: 1 and 1.0 are not alike, nor are 0.0 and -0.0. A database may have one of them only: a column of floats
            makes 1.0 of 1, and SQLite's makes 0.0 of -0.0.
    """
    return bool(one == other) and _strictly(one, other, exactly)


def _strictly(one: Any, other: Any, exactly: bool) -> bool:
    """The same for things that are equal. Keys count as `==` takes them, as they do in the model."""
    kind = type(one)
    if kind is bytes or kind is str:
        return True
    if kind in _NUMBERS:
        if type(other) not in _NUMBERS:
            return True
        if exactly:
            return kind is type(other) and repr(one) == repr(other)
        return (kind is bool) == (type(other) is bool)
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_strictly(value, other[key], exactly) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return all(_strictly(*both, exactly) for both in zip(one, other, strict=True))
    return True
