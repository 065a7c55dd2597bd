"""How long keys and values an engine takes. That is found by asking it, and not its author."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ...contract.engine import Context, Engine
from ...model.positions import origin

_ROOMS = (60_000, 4000, 1000, 250, 60)
_ANY = random.Random(0)

Takes = Callable[[Any, Any, Any], bool]
"""Puts a key and a value in a transaction; whether they were taken."""


def sized_like(thing: Any, size: int, draw: random.Random = _ANY) -> Any:
    """Bytes or a text of this size, drawn. Raises `TypeError` for anything else than bytes and texts."""
    if type(thing) is bytes:
        return draw.randbytes(size)
    if type(thing) is str:
        return draw.randbytes(size // 2 + 1).hex()[:size]
    raise TypeError(f"a {type(thing).__name__} has no size")


def has_size(thing: Any) -> bool:
    return type(thing) in (bytes, str)


def filled(thing: Any, size: int, draw: random.Random) -> Any:
    """Bytes or a text, made as long as `size` by what is drawn behind it; in a tuple, its first part that is such a
    thing. Anything else stays as it is."""
    if type(thing) is tuple:
        n = next((n for n, part in enumerate(thing) if has_size(part)), len(thing))
        return (*thing[:n], *(filled(part, size, draw) for part in thing[n : n + 1]), *thing[n + 1 :])
    if not has_size(thing) or len(thing) >= size:
        return thing
    return thing + sized_like(thing, size - len(thing), draw)


def rooms(engine: Engine[Any, Any], takes: Takes, key: Any, value: Any) -> tuple[int, int]:
    """How long a key, and how long a value, may well be made, at most 60,000 bytes: the first of a few sizes that the
    engine takes. 0: no longer than they are."""
    def room(keys: bool) -> int:
        for size in _ROOMS:
            draw = random.Random(size)
            long = (filled(key, size, draw), value) if keys else (key, filled(value, size, draw))
            if long != (key, value) and would_take(engine, takes, *long):
                return size
        return 0

    return room(keys=True), room(keys=False)


def would_take(engine: Engine[Any, Any], takes: Takes, key: Any, value: Any) -> bool:
    """Whether a transaction, which is dropped, takes a key with a value."""
    tx = engine.begin()
    try:
        return takes(tx, key, value)
    finally:
        tx.close()


@contextmanager
def an_engine(kind: type[Engine[Any, Any]], options: Mapping[str, Any]) -> Iterator[Engine[Any, Any]]:
    """An engine of its own with an empty state."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as place:
        context = Context(options=options)
        kind.create(Path(place), origin(b"a store's own id"), context)
        with closing(kind.open(Path(place), context)) as engine:
            yield engine
