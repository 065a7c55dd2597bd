"""Keys beside a key: those that an engine confuses with it if it cuts, pads, or folds keys, or ends them by a NUL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_OF_BYTES: tuple[Callable[[bytes], bytes], ...] = (
    lambda key: key + b"\0", lambda key: key[:-1], lambda key: key + b"\xff", lambda key: b"\0" + key,
    lambda key: key + b"\0\0")
_OF_TEXT: tuple[Callable[[str], str], ...] = (
    lambda key: key + "\0", lambda key: key[:-1], lambda key: key + "\uffff", lambda key: key + " ",
    lambda key: key.swapcase(), lambda key: key + "\u0301")


def neighbour(key: Any, which: int) -> Any:
    """One of the keys beside bytes, a text, or the last part of a tuple. Any other key has none, and is returned."""
    if type(key) is bytes:
        return _OF_BYTES[which % len(_OF_BYTES)](key)
    if type(key) is str:
        return _OF_TEXT[which % len(_OF_TEXT)](key)
    if type(key) is tuple and key:
        return (*key[:-1], neighbour(key[-1], which))
    return key


def neighbours(key: Any) -> list[Any]:
    """All of them."""
    found = (neighbour(key, which) for which in range(max(len(_OF_BYTES), len(_OF_TEXT))))
    return list(dict.fromkeys(near for near in found if near != key))


def begins(key: Any, prefix: Any) -> bool:
    """Whether a key (bytes, a text, a tuple) begins with a prefix of its own type."""
    return bool(key[: len(prefix)] == prefix)


def has_prefixes(key: Any) -> bool:
    return type(key) in (bytes, str, tuple)
