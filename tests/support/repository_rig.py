"""Repositories in memory, and stores whose content is known at each transaction: what the tests of repositories share.

What a store should hold is kept beside it, in a dictionary for each transaction. So what was restored is compared with
something that went through no backup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memory_objects import MemoryObjectStore
from staging_memory import StagingMemory

from holdfast.backup.repository.archiver import Archiver
from holdfast.backup.repository.errors import StorageUnavailable
from holdfast.backup.repository.keys import Keyring
from holdfast.backup.repository.repository import Repository
from holdfast.backup.repository.storage.interface import StoredObject
from holdfast.engine.contract.engine import Engine
from holdfast.engine.env import Clock, Env
from holdfast.engine.source.interface import Source
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.quiet import SetClock

SMALL = Settings(segment_bytes=128 << 10, heartbeat_s=0)
Content = dict[bytes, bytes]
Fate = Callable[[str, str], str | None]
"""(what is asked: `put`, `get`, `list` or `delete`; the name) -> `lost`: it is done, and the answer is lost; `gone`:
nothing is done, and there is no answer; None: it is answered."""


class Objects(MemoryObjectStore):
    """Objects in memory, put at the time of `clock`.

    Attributes:
        asked: what was asked, and of which name, in order.
        fate: decides over each question.
    """

    def __init__(self, clock: Clock, objects: dict[str, tuple[bytes, int]] | None = None) -> None:
        super().__init__({} if objects is None else objects)
        self.clock = clock
        self.asked: list[tuple[str, str]] = []
        self.fate: Fate = lambda what, name: None

    def _ask(self, what: str, name: str, answer: Callable[[], Any]) -> Any:
        self.asked.append((what, name))
        fate = self.fate(what, name)
        if fate == "gone":
            raise StorageUnavailable(f"no answer to {what} {name}")
        answered = answer()
        if fate == "lost":
            raise StorageUnavailable(f"the answer to {what} {name} was lost")
        return answered

    def put(self, name: str, data: bytes) -> None:
        def work() -> None:
            super(Objects, self).put(name, data)
            self.objects[name] = data, self.clock.now_us()

        self._ask("put", name, work)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data: bytes = self._ask("get", name, lambda: super(Objects, self).get(name, offset, length))
        return data

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return iter(self._ask("list", prefix, lambda: [*super(Objects, self).list(prefix)]))

    def delete(self, name: str) -> None:
        self._ask("delete", name, lambda: super(Objects, self).delete(name))

    def gets(self, prefix: str) -> int:
        """How many objects below `prefix` were read."""
        return sum(what == "get" and name.startswith(prefix) for what, name in self.asked)


class Rig:
    """A repository in memory, which any number may open.

    Attributes:
        clock: the wall clock of all that is here. A sleep passes at once.
        objects: what is stored. storage: through which the repository that `repository` gives reaches it.
    """

    def __init__(self, keyring: Keyring | None = None) -> None:
        self.clock = SetClock()
        self.env = Env(clock=self.clock)
        self.id = self.env.randomness.token(16)
        self.keyring = keyring
        self.storage = Objects(self.clock)
        self.objects = self.storage.objects
        self.repository = self.opened()

    def opened(self, storage: Objects | None = None) -> Repository:
        return Repository(storage or self.storage, self.id, self.keyring, self.env)

    def copied(self) -> Rig:
        """Another repository with the same objects."""
        copy = Rig.__new__(Rig)
        copy.clock, copy.env, copy.id, copy.keyring = self.clock, self.env, self.id, self.keyring
        copy.storage = Objects(self.clock, dict(self.objects))
        copy.objects = copy.storage.objects
        copy.repository = copy.opened()
        return copy


class World:
    """A store, what it should hold after each transaction, and when each was committed.

    Attributes:
        models: by transaction; those without one changed nothing.
    """

    def __init__(self, directory: Path, env: Env, engine: type[Engine[Any, Any]] = StagingMemory,
                 settings: Settings = SMALL, models: dict[int, Content] | None = None) -> None:
        self.engine = engine
        self.store: Store[Any, Any] = Store.open(directory, engine, settings=settings, env=env)
        self.source: Source = LocalSource(self.store)
        self.models = {0: {}} if models is None else models

    @property
    def txid(self) -> int:
        return self.store.published.txid

    def write(self, count: int = 1, size: int = 40) -> None:
        """`count` transactions, each of which changes something."""
        for _ in range(count):
            number = self.txid + 1
            key, value = b"key %d" % (number % 7), b"%d." % number * (size // 4)
            with self.store.transaction() as tx:
                tx.put(key, value)
            self.note({key: value})

    def note(self, changes: Content) -> None:
        """The last transaction changed this."""
        self.models[self.txid] = {**self.content(self.txid - 1), **changes}

    def bulk(self, count: int = 30) -> None:
        load = {b"bulk %d" % n: b"%d" % (n + self.txid) * 20 for n in range(count)}
        self.store.bulk(load)
        self.note(load)

    def content(self, txid: int) -> Content:
        return self.models[max(n for n in self.models if n <= txid)]

    def time_us(self, txid: int) -> int:
        return self.store.log.time_of(txid)

    def archiver(self, repository: Repository, **how: Any) -> Archiver:
        return repository.archiver(self.source, **how)

    def restored(self, repository: Repository, place: Path, **point: Any) -> Content:
        """What a restore to a point gives."""
        repository.restore(place, engine=self.engine, **point)
        return content_of(place, self.engine)

    def branched(self, place: Path, txid: int, env: Env) -> World:
        """The restored store in `place` goes on, as of `txid`."""
        return World(place, env, self.engine, models={n: model for n, model in self.models.items() if n <= txid})

    def close(self) -> None:
        self.store.close()


@contextmanager
def world(directory: Path, env: Env, **how: Any) -> Iterator[World]:
    made = World(directory, env, **how)
    try:
        yield made
    finally:
        made.close()


def content_of(place: Path, engine: type[Engine[Any, Any]] = StagingMemory) -> Content:
    """What a store on disk holds. It must be consistent."""
    with Store.open(place, engine, read_only=True, settings=SMALL) as store, store.snapshot() as view:
        assert list(view.check()) == []
        return dict(view.items())
