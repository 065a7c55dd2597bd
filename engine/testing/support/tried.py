"""Keys and values that are put into an engine to see whether it takes them. If it does, it shows them as they were. If
not, it refuses them when they are put."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from .alike import alike
from .driver import Driver
from .ways import short
from .workload import KeyValues


class Tried:
    """What was put into an engine, and how it is called in messages.

    Attributes:
        number: the last one that was used of the workload's numbers.
    """

    def __init__(self, it: Driver, work: KeyValues) -> None:
        self._it, self._work = it, work
        self._told: dict[Any, str] = {}
        self.number = 0

    def put(self, pair: Callable[[int], tuple[Any, Any]], what: str) -> bool:
        """A transaction that puts a key and a value, beside something else, which is all that is left of it if they are
        refused. Whether they were taken.

        Args:
            pair: gives them for a number, which is another one each time.
            what: how they are called.
        """
        it, work = self._it, self._work
        self.number += 2
        model = it.models[-1].copy()
        tx = it.engine.begin()
        work.run(tx, model, work.numbered(self.number))
        before = tx.payload()
        key, value = pair(self.number + 1)
        doing = "put() of"
        try:
            taken = work.takes(tx, key, value)
            if taken:
                model[key] = value
                self._told[key] = what
                doing = "payload() after put() took"
            payload = tx.payload()
            same = taken or payload == before
            assert same, f"{what} was refused, and the transaction's payload is another one than before"
            doing = "apply() of a transaction with"
            it.apply(it.note(payload, model))
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{doing} {what} raises {type(error).__name__}: {error}. An engine takes it, or "
                                 "refuses it with InvalidInput when it is put") from error
        finally:
            tx.close()
        return taken

    def look(self) -> None:
        """Compare all of it, now and as it is after what happens to a state."""
        it = self._it
        digest = it.digest()
        self._compare("a view", digest)
        it.checkpoint()
        self._compare("a view after a checkpoint", digest)
        it.reopen()
        self._compare("a view after a checkpoint and an opening", digest)
        with contextlib.closing(it.recovered(it.copied(it.image()), at=it.engine.position)) as copy:
            self._compare("a copy of the image", digest, copy)

    def change(self) -> None:
        """Delete half of it, if the engine deletes, and give the rest other values."""
        it, work = self._it, self._work
        for n, key in enumerate(self._told):
            if work.delete is not None and n % 2:
                index = sorted(it.models[-1]).index(key)
                it.commit([("delete", index)])
            else:
                it.commit([("put", key, work.number(n)[1])])
                self._told[key] += ", given another value,"

    def _compare(self, where: str, digest: bytes, engine: Any = None) -> None:
        it = self._it
        expected = it.expected(it.published)
        with (engine or it.engine).view() as view:
            shown = dict(self._work.ways.items(view))
            for key, what in self._told.items():
                if key not in expected:
                    continue
                assert key in shown, f"{what} was put, and {where} does not show it"
                same = alike(shown[key], expected[key])
                assert same, f"{what} was put, and {where} shows {short(shown[key])} and not {short(expected[key])}"
            it.compare(view, where, it.published)
            self._work.ways.content(view, every_key=True)
            assert view.digest() == digest, (
                f"{where} has another digest than before, and nothing was put: what is kept differs a little")
