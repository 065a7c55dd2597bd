"""How a value that somebody passed is shown in a message. A message must come out whatever the value is."""

from __future__ import annotations

from math import log10

_MOST = 80
_LONG = 1 << 256


def shown(value: object) -> str:
    """`value` in a few words: as Python writes it, cut at 80 characters; a number by its length if it is long, since
    Python refuses to write ints of more than some thousand digits. What cannot be written is shown by its type."""
    if isinstance(value, int) and not -_LONG < value < _LONG:
        return f"an int of {int(value.bit_length() * log10(2)) + 1:,} digits or so"
    try:
        text = repr(value)
    except Exception:  # the caller's own __repr__, or a container with such an int in it
        return f"some {type_name(value)}"
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"


def printable(text: str) -> str:
    """Text for people, with what cannot be shown replaced: a path's bytes need be no characters.

    >>> printable("backup to /data/b\\udcff")
    'backup to /data/b?'
    """
    return "".join(c if c.isprintable() else "?" for c in text)


def type_name(value: object) -> str:
    """The name of a value's type, with its module if it is not Python's own: numpy has a bool and a str_ too."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
