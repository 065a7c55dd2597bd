"""The contract: what a database author writes, and what the kit promises in return.

An engine is the state behind a store. The kit owns the log, the order of transactions, and all waiting. The engine owns
the state, and only the engine knows what a payload means. An author subclasses three classes:

- `Engine`: create and open a directory, begin a transaction, apply records, checkpoint, give views and images;
- `Transaction`: the author's own typed transaction, which validates changes and becomes a payload;
- `View`: a consistent read view.

An engine declares what else it can do by subclassing `StagingEngine` and `BulkEngine`, and by its `Abilities`. The kit
never probes.

The kit promises:

- `begin`, `apply`, `stage` and `payload` never run concurrently with one another: the writer lock is held.
- From the position at which the engine was opened, `apply` gets every record once, in order, without gaps.
- `apply` and `checkpoint` never get a record that is not on stable storage.
- `checkpoint` never runs twice at once, and runs beside the others, `image` included, only if
  `Abilities.background_checkpoint` allows it.

`view`, and all calls on views and images, may come from any thread at any time.

Redo must converge. Start from the state at one position, or from any mixture of it with states up to a later position,
cell by cell, torn cells included. Applying the records between the two positions must give exactly the later state. So
a payload holds absolute after-images, never "add one". Redo must not read what may be torn, and must not allocate.
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
    """What an engine declares about itself. An ability that comes with methods is declared by its base class
    (`StagingEngine`, `BulkEngine`), any other here.

    Attributes:
        atomic: its durable state is always exactly at its position, even after a power cut. The state of any other
            engine is consistent only after replay to the log's end.
        image: `stable`: every byte is as of one position; or `moving`: bytes may change while they are read.
        background_checkpoint: `checkpoint` may run beside `begin`, `stage`, `apply`, `view` and `image`. Otherwise, the
            kit holds the writer lock during a checkpoint, and makes no image meanwhile.
        shared_readers: other processes may open its directory read-only while one writes.
        replays_in_memory: in a read-only opening, `apply` changes no byte on disk. Without it, such an opening works on
            a scratch copy.
        checksums: reading or checking the state finds bytes that changed on the disk. Without it, a bad disk changes
            content silently, and backups copy the change.
    """

    atomic: bool
    image: Literal["stable", "moving"]
    background_checkpoint: bool = False
    shared_readers: bool = False
    replays_in_memory: bool = False
    checksums: bool = True


@dataclass(frozen=True, slots=True)
class Context:
    """What the kit passes to an engine that it creates or opens.

    Attributes:
        env: files, clock, randomness and threads.
        options: all options that the engine declares: as given to `Store.open`, or their defaults.
        shared: another process has the directory open for writing. Only in a read-only opening of an engine that
            declares `shared_readers`.
        store_id: of the store, 16 bytes; empty if an engine is used without a store. An engine keeps it in its state,
            so that `check_store` can refuse the state of another store.
    """

    env: Env = REAL
    options: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    store_id: bytes = b""
    seams = renamed.attribute("seams", "env")

    def option(self, name: str, default: Any) -> Any:
        """Deprecated: use `options[name]`."""
        _warn("Context.option")
        return self.options.get(name, default)

    def accept_options(self, *known: str) -> None:
        """Deprecated: does nothing."""
        _warn("Context.accept_options")

    def check_store(self, held: bytes, path: Path) -> None:
        """Raises `ForeignStore` if `held`, the store id in a state, is another store's. Empty or zeros: no id."""
        if self.store_id and any(held) and held != self.store_id:
            raise ForeignStore(f"{path} is the state of store {held.hex()}, not of {self.store_id.hex()}",
                               hint="check where this copy came from; restore from a backup of this store")


TxT = TypeVar("TxT", bound=Transaction)
ViewT = TypeVar("ViewT", bound=View)


def _warn(name: str) -> None:
    warnings.warn(f"{name} is not needed any more, because the kit checks what an engine declares in `options`; "
                  "release 0.3 removes it", DeprecationWarning, stacklevel=3)


class _OwnPayloads:
    """The default: only the payload version that the class writes."""

    def __get__(self, engine: object, kind: type[Engine[Any, Any]]) -> frozenset[int]:
        return frozenset({kind.payload_version})


class Engine(ABC, Generic[TxT, ViewT]):
    """A state, driven by a log. See the module's text for what the kit promises.

    Class attributes:
        name: the engine's name, which is in every file.
        state_format: version of the state on disk that this code writes.
        payload_version: version of the payloads that this code writes.
        reads_payloads: the payload versions that `apply` takes. Default: only `payload_version`.
        abilities: what else it can do.
        options: what `Store.open(…, options=…)` may set, by name. Default: nothing. The kit refuses any other option
            with `InvalidInput`.
    """

    name: ClassVar[str]
    state_format: ClassVar[int]
    payload_version: ClassVar[int]
    reads_payloads: ClassVar[frozenset[int]] = _OwnPayloads()  # type: ignore[assignment]  # a value by each class
    abilities: ClassVar[Abilities]
    options: ClassVar[Mapping[str, Option]] = {}

    def __init_subclass__(cls, **more: Any) -> None:
        """Wrap `create` and `open`, so that they get a context whose options are checked and complete."""
        super().__init_subclass__(**more)
        if vars(cls).get("payload_version") == 0 or 0 in (vars(cls).get("reads_payloads") or ()):
            raise InvalidInput(f"{cls.__qualname__} declares payload version 0, which is that of the kit's own records",
                               hint="begin with payload_version = 1")
        renamed.parameter(cls, "open", "adopt", "at")
        for name in ("create", "open"):
            home = next(base for base in cls.__mro__ if name in vars(base))
            method = vars(home)[name]  # wrapped already if an engine has it; not if it comes from a mix-in
            if isinstance(method, classmethod) and (home is cls or not issubclass(home, Engine)):
                setattr(cls, name, classmethod(_completing(method.__func__)))

    @classmethod
    @abstractmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        """Make an empty durable state at `position` in an existing, empty directory."""

    @classmethod
    @abstractmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False, at: Position | None = None) -> Self:
        """Open a state.

        Args:
            directory: where it is, as an absolute path.
            context: the environment and the options, which are already checked.
            read_only: change no byte in `directory`. `begin`, `checkpoint` and `image` will not be called, and `apply`
                only if `replays_in_memory`.
            at: the state is a copied image that was begun at this position: ignore the position that it holds, and
                open at this one.

        Raises:
            Damaged, UpgradeRequired, UnsupportedFormat, DiskFull.
            ForeignStore: from `Context.check_store`, for the state of another store.
        """

    @property
    @abstractmethod
    def position(self) -> Position:
        """The durable state holds everything up to here. Only `checkpoint` and `apply_bulk` move it. The engine never
        gets the kit's own records, nor their positions, so this may lag behind the log by those."""

    @abstractmethod
    def begin(self) -> TxT:
        """A transaction on the newest state, staged changes included."""

    @abstractmethod
    def apply(self, records: Sequence[Record]) -> None:
        """Apply these records to the state that views show. This need not be durable yet."""

    @abstractmethod
    def checkpoint(self, upto: Position) -> Position:
        """Make durable what was applied, at least up to `upto`. Returns the position reached: at least `upto`, and at
        most what `apply` or `publish` brought. Does nothing if `upto` is at or below the current position.

        Raises:
            DiskFull, LimitReached, or an `OSError` for a lack of descriptors or memory: nothing has changed, and a
                later call may succeed. Any other error poisons the store.
        """

    @abstractmethod
    def pending_bytes(self) -> int:
        """About how many bytes of memory hold what is not checkpointed. The kit uses this to start checkpoints and to
        slow commits down. Make it quick: it is called for every transaction, from any thread, without a lock."""

    @abstractmethod
    def view(self) -> ViewT:
        """A view of what is applied, or published if the engine stages. From any thread."""

    @abstractmethod
    def image(self) -> Image:
        """The image of the durable state. Making it may be slow and need room on disk."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. Does not checkpoint."""

    @classmethod
    def upgrade(cls, directory: Path, context: Context) -> None:
        """Upgrade a state of an older format in place. Called only if the user asks for it."""
        raise InvalidInput(f"the {cls.name} engine has no older state format to upgrade from")


def _completing(method: Any) -> Any:
    @wraps(method)
    def complete(cls: Any, *given: Any, **named: Any) -> Any:
        """Whatever the author calls the parameters, the context is the argument that is a `Context`."""
        def with_options(value: Any) -> Any:
            return replace(value, options=checked(cls.options, value.options)) if isinstance(value, Context) else value

        return method(cls, *map(with_options, given), **{name: with_options(value) for name, value in named.items()})

    return complete


class StagingEngine(Engine[TxT, ViewT]):
    """An engine that shows the next writer what is appended but not yet published. With any other engine, the writer
    lock is held until publication, so commits cannot share a sync.

    The kit calls `stage` instead of `apply` for its own commits, and `publish` when views may show them. `checkpoint`
    never asks for more than is published.
    """

    @abstractmethod
    def stage(self, record: Record, tx: TxT) -> None:
        """Take over the changes of `tx`, logged as `record`. Transactions begun from now on see them; views do not."""

    @abstractmethod
    def publish(self, position: Position) -> None:
        """Let views made from now on show everything up to `position`. Must be quick, and must not fail."""

    @abstractmethod
    def staged_view(self) -> ViewT:
        """A view that also shows what is staged."""


class BulkEngine(Engine[TxT, ViewT]):
    """An engine that takes bulk loads: one transaction whose data is in a file beside the log.

    The kit calls `write_bulk` under the writer lock, syncs the file, and logs one record that names it. When the record
    may be published, the kit calls `apply_bulk`, which changes the durable state directly. A `BulkEngine` that replays
    in memory need not replay bulk records there: the kit uses a scratch copy for those.
    """

    @abstractmethod
    def write_bulk(self, load: Any, out: BinaryIO) -> bytes:
        """Validate `load` (whatever the engine takes), write its data to `out`, and return the payload of its record.

        Raises:
            InvalidInput: the load is not valid; nothing has changed.
            DiskFull: the state has no room for the load; nothing has changed.
        """

    @abstractmethod
    def apply_bulk(self, record: Record, path: Path) -> None:
        """Make the durable state hold everything up to and including this record. The file at `path` begins with what
        `write_bulk` wrote, already verified; a trailer of the kit follows. On return, `position` is at least the
        record's. Raises as `checkpoint` does."""
