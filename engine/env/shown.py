"""How a value that a user passed is shown in a message. This must work for any value."""

from __future__ import annotations

from math import log10

_MOST = 80
_LONG = 1 << 256


def shown(value: object) -> str:
    """`repr(value)`, cut at 80 characters. A long int is shown by its number of digits, because Python refuses to print
    ints of more than a few thousand digits. A value whose `repr` fails is shown by its type."""
    if isinstance(value, int) and not -_LONG < value < _LONG:
        return f"an int of {int(value.bit_length() * log10(2)) + 1:,} digits or so"
    try:
        text = repr(value)
    except Exception:  # the caller's own __repr__, or a container with such an int in it
        return f"some {type_name(value)}"
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"


def printable(text: str) -> str:
    """Text for people, with unprintable characters replaced. A path may hold bytes that are not characters.

    >>> printable("backup to /data/b\\udcff")
    'backup to /data/b?'
    """
    return "".join(c if c.isprintable() else "?" for c in text)


def type_name(value: object) -> str:
    """The name of a value's type, with its module unless it is a builtin, because numpy has a `bool` too."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
