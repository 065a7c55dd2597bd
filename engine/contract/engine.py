"""The contract: what a database author writes, and what the kit promises in return.

An engine is the state behind a store. The kit owns the log, the order of things and all waiting; the engine owns the
state and is the only one to know what a payload means. An author subclasses three classes:

- `Engine`: create and open a directory, begin a transaction, apply records, checkpoint, give views and images;
- `Transaction`: the author's own typed transaction, which validates and ends as a payload;
- `View`: a consistent read view.

What else an engine can do is declared by subclassing `StagingEngine`, `BulkEngine`, and by its `Abilities`; the kit
never probes.

The kit promises: `begin`, `apply`, `stage` and `payload` are never called concurrently with one another (the writer
lock is held); `apply` gets every record once a session, in order, without gaps, from the position that the engine had
when it was opened; neither `apply` nor `checkpoint` ever gets a record that is not on stable storage; `checkpoint` is
called concurrently with the others, `image` included, only where `Abilities.background_checkpoint` says so, and never
twice at once. `view`, and everything on views and images, may be called from any thread at any time.

Redo converges. Take the state at one position, or any mixture, cell by cell and torn cells included, of the states
between it and a later one: applying the records between the two gives exactly the later state. So a payload holds
absolute after-images, never "add one"; redo does not read what it may find torn, and allocates nothing.
"""
from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Generic, Literal, Self, TypeVar

from .. import renamed
from ..env import REAL, Env
from ..errors import ForeignStore, InvalidInput
from ..model.positions import Position
from ..model.records import Record
from .image import Image
from .options import Option, checked
from .transaction import Transaction
from .view import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What an engine declares of itself. Each ability is declared in one place, and asked there: one that comes with
    methods by its base class (`StagingEngine`, `BulkEngine`), any other here.

    Attributes:
        atomic: its durable state is always exactly at its position, whatever happens to the power. Any other engine
            opens only after replay to the log's end.
        image: `stable`, every byte as of one position; or `moving`, bytes change while they are read.
        background_checkpoint: `checkpoint` may run beside `begin`, `stage`, `apply`, `view` and `image`. Without it the
            kit holds the writer lock meanwhile, and makes no image.
        shared_readers: its directory may be opened read-only by other processes while one writes.
        replays_in_memory: a read-only opening may `apply` records without changing a byte on disk. Without it, such an
            opening works on a scratch copy.
        checksums: bytes of its state that were changed on the disk are found by whoever reads or checks it. Without
            it a bad disk changes content silently, and backups copy that.
    """

    atomic: bool
    image: Literal["stable", "moving"]
    background_checkpoint: bool = False
    shared_readers: bool = False
    replays_in_memory: bool = False
    checksums: bool = True


@dataclass(frozen=True, slots=True)
class Context:
    """What the kit hands to an engine that it opens.

    Attributes:
        env: files, clock, randomness and threads.
        options: the engine's own options, all that it declares: as given to `Store.open`, or the defaults.
        shared: in a read-only opening: another process has the directory open for writing. Only engines that declare
            `shared_readers` are told so.
        store_id: of the store whose state it is, 16 bytes; empty where an engine is used without a store. An engine
            keeps it in its state, so that the state of another store is refused (`check_store`).
    """

    env: Env = REAL
    options: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    store_id: bytes = b""
    seams = renamed.attribute("seams", "env")

    def option(self, name: str, default: Any) -> Any:
        """As `options[name]`; use that."""
        _warn("Context.option")
        return self.options.get(name, default)

    def accept_options(self, *known: str) -> None:
        """Not needed any more, and does nothing."""
        _warn("Context.accept_options")

    def check_store(self, held: bytes, path: Path) -> None:
        """Raises `ForeignStore` where `held`, the store id that a state has (empty or zeros: none), is another one."""
        if self.store_id and any(held) and held != self.store_id:
            raise ForeignStore(f"{path} is the state of store {held.hex()}, not of {self.store_id.hex()}",
                               hint="check where this copy came from; restore from a backup of this store")


TxT = TypeVar("TxT", bound=Transaction)
ViewT = TypeVar("ViewT", bound=View)


def _warn(name: str) -> None:
    warnings.warn(f"{name} is not needed any more, since the kit checks what an engine declares in `options`; the name "
                  "goes with release 0.3", DeprecationWarning, stacklevel=3)


class _OwnPayloads:
    """The payload version that a class writes, alone."""

    def __get__(self, engine: object, kind: type[Engine[Any, Any]]) -> frozenset[int]:
        return frozenset({kind.payload_version})


class Engine(ABC, Generic[TxT, ViewT]):
    """A state, driven by a log. See the module's text for what the kit promises.

    Class attributes:
        name: the engine's name, as it stands in every file.
        state_format: version of the state on disk that this code writes.
        payload_version: version of the payloads that this code writes.
        reads_payloads: the payload versions that `apply` takes; that which this code writes, if it says nothing.
        abilities: what it can do besides.
        options: what `Store.open(…, options=…)` may set, by name; nothing, if it says nothing. The kit refuses all
            else (`InvalidInput`).
    """

    name: ClassVar[str]
    state_format: ClassVar[int]
    payload_version: ClassVar[int]
    reads_payloads: ClassVar[frozenset[int]] = _OwnPayloads()  # type: ignore[assignment]  # a value by each class
    abilities: ClassVar[Abilities]
    options: ClassVar[Mapping[str, Option]] = {}

    def __init_subclass__(cls, **more: Any) -> None:
        """Have `create` and `open` given a context whose options are checked and complete."""
        super().__init_subclass__(**more)
        renamed.parameter(cls, "open", "adopt", "at")
        for name, wrap in (("create", _creates), ("open", _opens)):
            if isinstance(method := cls.__dict__.get(name), classmethod):
                setattr(cls, name, classmethod(wrap(method.__func__)))

    @classmethod
    @abstractmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        """Make an empty durable state at `position` in an existing, empty directory."""

    @classmethod
    @abstractmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False, at: Position | None = None) -> Self:
        """Open a state.

        Args:
            directory: where it is, as an absolute path: the process may change its directory.
            context: env and options, which are checked.
            read_only: change no byte in `directory`. `apply` may still be called where `replays_in_memory`;
                `begin`, `checkpoint` and `image` will not be.
            at: the state is a copied image taken from this position on: ignore the position it happens to hold, and
                be at this one.

        Raises:
            Damaged, UpgradeRequired, UnsupportedFormat, DiskFull; ForeignStore for the state of another store, as
            `Context.check_store`.
        """

    @property
    @abstractmethod
    def position(self) -> Position:
        """Of the durable state: it holds everything up to here. It moves only in `checkpoint`."""

    @abstractmethod
    def begin(self) -> TxT:
        """A transaction on the newest state."""

    @abstractmethod
    def apply(self, records: Sequence[Record]) -> None:
        """Bring the state (what views show) forward by these records. It need not be durable yet."""

    @abstractmethod
    def checkpoint(self, upto: Position) -> Position:
        """Make durable what was applied up to `upto`, at least; return the position reached, which is at least `upto`
        and no more than what `apply` or `publish` brought. `upto` at or below the current position does nothing.

        Raises:
            DiskFull, LimitReached, or an `OSError` that says that descriptors or memory are lacking: nothing changed, a
                later call may succeed. Any other error poisons the store.
        """

    @abstractmethod
    def pending_bytes(self) -> int:
        """About how many bytes of memory hold what is not checkpointed. The kit starts a checkpoint, and slows commits
        down, by this figure."""

    @abstractmethod
    def view(self) -> ViewT:
        """A view of what is applied (or published, where the engine stages)."""

    @abstractmethod
    def image(self) -> Image:
        """The durable state's files. Making it may be slow and need room."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. Does not checkpoint."""

    @classmethod
    def upgrade(cls, directory: Path, context: Context) -> None:
        """Bring an older state format to this one, in place. Called only when asked for."""
        raise InvalidInput(f"the {cls.name} engine has no older state format to upgrade from")


def _complete(kind: type[Engine[Any, Any]], context: Context) -> Context:
    return replace(context, options=checked(kind.options, context.options))


def _creates(method: Any) -> Any:
    @wraps(method)
    def complete(cls: Any, directory: Path, position: Position, context: Context) -> None:
        method(cls, directory, position, _complete(cls, context))

    return complete


def _opens(method: Any) -> Any:
    @wraps(method)
    def complete(cls: Any, directory: Path, context: Context, **how: Any) -> Any:
        return method(cls, directory, _complete(cls, context), **how)

    return complete


class StagingEngine(Engine[TxT, ViewT]):
    """An engine that shows the next writer what is appended and not yet published. Without it the writer lock is held
    until publication, so commits do not group.

    The kit calls `stage` instead of `apply` for its own commits, and `publish` when views may show them. `checkpoint`
    never asks for more than is published.
    """

    @abstractmethod
    def stage(self, record: Record, tx: TxT) -> None:
        """Take the transaction's changes as record `record`: transactions begun from now on see them, views do not."""

    @abstractmethod
    def publish(self, position: Position) -> None:
        """Views made from now on show everything up to `position`. Must be quick and cannot fail."""

    @abstractmethod
    def staged_view(self) -> ViewT:
        """A view that also shows what is staged."""


class BulkEngine(Engine[TxT, ViewT]):
    """An engine that takes bulk loads: one transaction whose data stands in a file beside the log.

    The kit calls `write_bulk` under the writer lock, syncs the file, logs one record that names it, and when that may
    be published calls `apply_bulk`, which goes straight into the durable state. A `BulkEngine` that replays in memory
    need not do so for bulk records: the kit uses a scratch copy then.
    """

    @abstractmethod
    def write_bulk(self, load: Any, out: BinaryIO) -> bytes:
        """Validate `load` (whatever the engine takes), write its data to `out`, return the payload of its record.

        Raises:
            InvalidInput: nothing happened.
            DiskFull: nothing happened; the state could not take it.
        """

    @abstractmethod
    def apply_bulk(self, record: Record, path: Path) -> None:
        """Make the durable state hold everything up to and with this record. The file at `path` begins with what
        `write_bulk` wrote, its bytes checked; a trailer of the kit's follows. When it returns, `position` is at least
        the record's. Raises as `checkpoint` does."""
