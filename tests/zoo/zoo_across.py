"""Animals of other processes and other times, and of threads that nobody looks after."""

from __future__ import annotations

import locale
import os
import random
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

from zoo import animal

from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.contract.engine import Context
from holdfast.engine.contract.image import Image
from holdfast.engine.contract.plugin import Plugin, StoreHandle
from holdfast.engine.errors import UpgradeRequired
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record


class HashingView(MemoryView):
    def digest(self) -> bytes:
        return (hash(frozenset(self._state.items())) % (1 << 128)).to_bytes(16, "big")


@animal(caught_by="EngineContract.test_other_processes_read_and_write_the_same")
class HashedDigest(MemoryEngine):
    """The digest comes from `hash()`, which is quick and the same all day long. In the next process it is another one,
    and each backup that is verified there is said to be damaged."""

    def view(self) -> MemoryView:
        return HashingView(dict(self._state), self._applied.txid)


class UnorderedView(MemoryView):
    def digest(self) -> bytes:
        return MemoryView({b"keys": b"|".join({bytes(key) for key in self._state}), **self._state}, 0).digest()


@animal(caught_by="EngineContract.test_other_processes_read_and_write_the_same")
class DigestOfASet(MemoryEngine):
    """The digest goes through a set of keys in the order in which it finds them. The order is that of their hashes,
    which Python salts anew for each process."""

    def view(self) -> MemoryView:
        return UnorderedView(dict(self._state), self._applied.txid)


class FlaggedTransaction(MemoryTransaction):
    def payload(self) -> bytes:
        payload = super().payload()
        return b"\1" + payload if payload else b""


@animal(caught_by="EngineContract.test_what_earlier_versions_wrote_opens")
class FlagsItsPayloads(MemoryEngine):
    """A release puts a byte of flags before each payload, and leaves `payload_version` as it was. Logs of the day
    before are read as if they had one."""

    def begin(self) -> MemoryTransaction:
        return FlaggedTransaction(self._state)

    def apply(self, records: Sequence[Record]) -> None:
        super().apply([Record(r.txid, r.epoch, r.time_us, r.payload_version, r.payload[1:], r.attachment, r.header,
                              r.chain) for r in records])


@animal(caught_by="EngineContract.test_what_earlier_versions_wrote_opens")
class WantsAnUpgradeOfItself(MemoryEngine):
    """A release has a new file, without which it asks for an upgrade. Its `state_format` is the old one, so no tool
    knows which stores to upgrade, and the upgrade refuses them as being new."""

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        super().create(directory, position, context)
        context.env.files.write_durably(directory / "features", b"none")

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        if not context.env.files.exists(directory / "features"):
            raise UpgradeRequired(f"{directory} has no features")
        return super().open(directory, context, **how)


@animal(caught_by="EngineContract.test_the_position_is_true")
class MergerDies(MemoryEngine):
    """A checkpoint hands what it wrote to a thread that merges files. The thread dies of its first error, which stands
    on a terminal that nobody looks at, and files are not merged any more."""

    def checkpoint(self, upto: Position) -> Position:
        reached = super().checkpoint(upto)
        merger = threading.Thread(target=self._merge, name="merger")
        merger.start()
        merger.join()
        return reached

    def _merge(self) -> None:
        for path in self._directory.glob("*.old"):
            path.unlink()
        (self._directory / "merged").rename(self._directory / "state.old")


@animal(caught_by="PluginContract.test_any_history_is_lived_through")
class SenderDies(Plugin):
    """A thread sends what is published. It dies of the first transaction that it cannot send, and the plugin goes on
    filling its queue."""

    def opened(self, store: StoreHandle) -> None:
        self.queue: SimpleQueue[Record | None] = SimpleQueue()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while (record := self.queue.get()) is not None:
            record.payload.decode("ascii").encode("utf-8")

    def published(self, records: Sequence[Record]) -> None:
        for record in records:
            self.queue.put(record)

    def closing(self, store: StoreHandle) -> None:
        self.queue.put(None)
        self.thread.join()


@animal(caught_by="EngineContract.test_the_process_stays_as_it_is")
class SetsTheUmask(MemoryEngine):
    """The state is to be read by the group, so the umask is set before it is written. From then on, every file that the
    application makes can be read by the group."""

    def checkpoint(self, upto: Position) -> Position:
        os.umask(0o022)
        return super().checkpoint(upto)


@animal(caught_by="EngineContract.test_the_process_stays_as_it_is")
class DrawsTheSame(MemoryEngine):
    """An opening seeds the module `random`, so that its tests are the same each time. The application's tokens are,
    too."""

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        random.seed(1)
        return super().open(directory, context, **how)


@animal(caught_by="EngineContract.test_the_process_stays_as_it_is")
class LeavesTemporaryFiles(MemoryEngine):
    """An image begins with a temporary file, in the directory where all programs have theirs. Nobody removes it."""

    def image(self) -> Image:
        handle, _ = tempfile.mkstemp(prefix="image-")
        os.close(handle)
        return super().image()


class EncodedView(MemoryView):
    def digest(self) -> bytes:
        encoding = locale.getpreferredencoding(False)
        keys = {key.decode("latin-1").encode(encoding, "replace"): value for key, value in self._state.items()}
        return MemoryView(keys, 0).digest()


@animal(caught_by="EngineContract.test_other_processes_read_and_write_the_same")
class EncodesAsTheUserDoes(MemoryEngine):
    """The digest is over keys in the encoding that the user's environment asks for. A service that the system starts
    has another one."""

    def view(self) -> MemoryView:
        return EncodedView({**self._state, "\xe9".encode(): b""}, self._applied.txid)


@animal(caught_by="EngineContract.test_two_engines_share_nothing")
class CachedByPath(MemoryEngine):
    """What was read is kept in the class, by path and transaction, so that opening again is quick. Who restores another
    state to the same path, of the same length, opens the old one."""

    read: ClassVar[dict[tuple[Path, int], Any]] = {}

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        engine = super().open(directory, context, **how)
        engine._state = dict(cls.read.setdefault((directory, engine.position.txid), engine._state))
        return engine
