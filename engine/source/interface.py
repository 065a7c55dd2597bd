"""The source: whatever gives out leases, images and log. A local store is one, and so is a store across a network.

Except for recovery, everything that copies or follows a store uses this interface and nothing else. The calls of a
copy, in order: `lease` with an image; `read_image` until every byte is there; `confirm`, which says that the lease held
throughout and how far the copy must be replayed; `read_log` from the image's position; `register` a slot, so that the
log after the copy is kept; `release`.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from ..contract.image import ImageFile
from ..errors import AheadOfSource, Diverged, ForeignStore, InvalidInput, OtherBranch, Unsupported
from ..model.positions import History, Position
from ..model.records import Record

HEX_ID = re.compile(r"[0-9a-f]{2,64}")
"""Ids of instances and of slots, as texts."""
CHUNK_BYTES = 4 << 20
"""The most bytes that are read, checksummed and sent in one piece."""

LEAST_BLOCK, MOST_BLOCK = 4 << 10, CHUNK_BYTES
"""Bytes of the smallest and the largest block of an image."""
BLOCK_DIGEST_BYTES = 32
"""Bytes of what `block_digest` returns."""


def block_digest(data: bytes | memoryview) -> bytes:
    """The digest that names a block: SHA-256. Blocks of equal digests count as equal, whoever made them, so it must be
    strong; and processors have instructions for this one, so a thread hashes more than 1 GB/s."""
    return hashlib.sha256(data).digest()


class Block(NamedTuple):
    """A block of an image's file.

    Attributes:
        digest: `block_digest` of its bytes.
        data: its bytes, or None if it is the one that the caller knows already. A view holds the bytes of all blocks
            that were read with it.
    """

    digest: bytes
    data: bytes | memoryview | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberInfo:
    """What a source says that is a member of a cluster.

    Attributes:
        name: within the cluster.
        role: `primary`, `follower`, `candidate`, or `branched`: it has shown what the cluster does not have.
        healthy: whether it is the primary, or follows one now.
    """

    name: str
    role: str
    healthy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What a source is and where it stands.

    Attributes:
        instance: random id (hex) of this opening of the store; another one after a restart.
        history: store id and branches.
        engine, state_format, payload_version: name of the engine that opened the store; version of the state in its
            images; version of the payloads that it writes.
        durable, published: watermarks. Backups read up to `published`.
        readable: the log can be read up to here, since nothing up to here is ever cut off again. In a single store that
            is all that is durable, published or not: publication may wait for a reader of the log, such as an archiver.
            In a member of a cluster it is what is published, since a new primary cuts off what is not.
        log_base: the position just before the first record that is still in its log.
        complete_until_us: every transaction committed up to this time is at or below `published`.
        path: where the store is, for people.
        member: if the store is a cluster's, what its member is; None: it is a single store.
    """

    instance: str
    history: History
    engine: str
    state_format: int
    payload_version: int
    durable: Position
    published: Position
    readable: Position
    log_base: Position
    complete_until_us: int
    path: str
    member: MemberInfo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A lease as granted.

    Attributes:
        id: names the lease in every later call.
        instance: of the source that granted it.
        ttl: seconds until the lease expires unless it is renewed. Any use renews it.
        position: the log after this position is kept while the lease lasts. If there is an image, it is the image's.
        image_id: names the image. None for a lease on log only.
        files: the files of the image.
        moving: whether the image's bytes may change while they are read.
        time_us: commit time of the transaction at `position`; 0 if it is not known.
    """

    id: str
    instance: str
    ttl: float
    position: Position
    image_id: str | None = None
    files: tuple[ImageFile, ...] = ()
    moving: bool = False
    time_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """The source's statement, made after the last byte was read, that the lease held throughout.

    Attributes:
        consistent_from: the copy is consistent only once it is replayed to this position.
        published: the published position at this moment: `consistent_from` or later.
        complete_until_us: as in `SourceInfo`.
    """

    consistent_from: Position
    published: Position
    complete_until_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentDigest:
    """What the source's content was at a position: `View.digest`, by a full walk."""

    position: Position
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """A registered slot, and what it costs.

    Attributes:
        id, name: as registered.
        position: the log after this position is kept for the slot.
        seen_us: when it last registered.
        held_bytes: bytes of log after `position`. They could not be pruned even if nothing else needed them.
    """

    id: str
    name: str
    position: Position
    seen_us: int
    held_bytes: int


class Source(ABC):
    """See the module's text. Every method may raise `SourceUnavailable`, `SourceRefused`, `NotAuthorized`. Those that
    take a lease raise `LeaseExpired` if it no longer holds, and `SourceRestarted` if another process granted it."""

    @abstractmethod
    def info(self) -> SourceInfo:
        """What the source is, and where it stands now. O(1)."""

    @abstractmethod
    def chain_at(self, txid: int) -> bytes:
        """The chain at `txid`. Raises `LogPruned` if the log no longer reaches back to it, and `AheadOfSource` if it
        is beyond the durable end."""

    @abstractmethod
    def lease(self, owner: str, *, image: bool, after: Position | None = None, ttl: float = 60.0) -> Grant:
        """Hold an image and the log after it, or (`image=False`) the log after the position `after`.

        Raises:
            LogPruned: the log after `after` is gone.
            Diverged: the source has another chain at `after`.
            TooManyLeases, DiskFull.
        """

    @abstractmethod
    def renew(self, lease_id: str) -> None:
        """Start the lease's time to live again."""

    @abstractmethod
    def release(self, lease_id: str) -> None:
        """Give a lease back. One that is gone already is ignored."""

    @abstractmethod
    def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        """Exactly these bytes, at most `CHUNK_BYTES`, checked for damage in transit. Raises `Damaged`."""

    def read_blocks(self, lease_id: str, name: str, offset: int, length: int, block_bytes: int, known: Sequence[bytes]
                    ) -> list[Block]:
        """The blocks of these bytes, at most `CHUNK_BYTES`; the last one may be shorter. Digests and bytes come from
        one read, so they agree even if the file changes meanwhile. A source far away sends only what is not known.

        Args:
            block_bytes: from `LEAST_BLOCK` to `MOST_BLOCK`.
            known: the digests that the caller has for these blocks, in order; empty for one that it lacks. Those at the
                end may be left out.

        Raises:
            InvalidInput; and as `read_image`.
        """
        check_blocks(length, block_bytes, known)
        return blocks_of(lacking(self.read_image(lease_id, name, offset, length), block_bytes, known), known)

    @abstractmethod
    def confirm(self, lease_id: str) -> Confirmation: ...

    def content_digest(self, lease_id: str) -> ContentDigest:
        """The digest of what is published now, so that a restore to its position can be compared with it. O(content).
        Raises `Unsupported` if this kind of source has none."""
        raise Unsupported("this source computes no digest of its content", hint="go without it")

    @abstractmethod
    def read_log(self, lease_id: str, after: Position, upto: int) -> Iterator[Record]:
        """Every record after `after`, up to and including `upto`, in order. Each is checked to continue the chain.

        Raises `LogPruned`, `Diverged`, `Damaged`; `AheadOfSource` if `upto` is beyond `SourceInfo.readable`."""

    @abstractmethod
    def read_attachment(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        """Bytes of an attachment that a record in the leased log names."""

    @abstractmethod
    def register(self, slot_id: str, name: str, position: Position) -> None:
        """Keep the log after `position` for this slot, durably, until the slot registers a later position. The source
        may bound how much it keeps."""

    @abstractmethod
    def slots(self) -> list[SlotState]:
        """All registered slots, the one that is farthest behind first. O(slots)."""

    @abstractmethod
    def drop(self, slot_id: str) -> None:
        """Stop keeping log for this slot, durably. A later `register` makes it anew. Raises `NotFound`."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def check_blocks(length: int, block_bytes: int, known: Sequence[bytes]) -> None:
    """Check the arguments of `read_blocks`. Raises `InvalidInput`."""
    if not 0 <= length <= CHUNK_BYTES or not LEAST_BLOCK <= block_bytes <= MOST_BLOCK:
        raise InvalidInput(f"{length} bytes in blocks of {block_bytes} were asked for",
                           hint=f"ask for up to {CHUNK_BYTES} bytes, in blocks of {LEAST_BLOCK} to {MOST_BLOCK}")
    if len(known) > -(-length // block_bytes) or any(len(d) not in (0, BLOCK_DIGEST_BYTES) for d in known):
        raise InvalidInput(f"{len(known)} digests are not those of {length} bytes in blocks of {block_bytes}",
                           hint=f"give one for each block at most: {BLOCK_DIGEST_BYTES} bytes, or none")


def lacking(data: bytes, block_bytes: int, known: Sequence[bytes]) -> list[memoryview | None]:
    """`data` as blocks, with None for those that are known. Copies nothing, and hashes those that may be known."""
    view, found = memoryview(data), list[memoryview | None]()
    for number, start in enumerate(range(0, len(data), block_bytes)):
        block = view[start : start + block_bytes]
        digest = known[number] if number < len(known) else b""
        found.append(None if digest and block_digest(block) == digest else block)
    return found


def blocks_of(lacked: Sequence[memoryview | None], known: Sequence[bytes]) -> list[Block]:
    """Blocks, of those that are lacked and those that are known. Hashes the former."""
    return [Block(known[number], None) if data is None else Block(block_digest(data), data)
            for number, data in enumerate(lacked)]


def compare(info: SourceInfo, history: History, end: Position, *, accept_branch: bytes | None = None) -> None:
    """Check that a copy with this history, ending at `end`, may continue from the source `info`. Only store and
    branches are compared. `Source.lease(after=end)` compares the chain at `end`.

    Raises:
        ForeignStore, OtherBranch, AheadOfSource, Diverged.
    """
    theirs, ours = info.history, history
    if theirs.store_id != ours.store_id:
        raise ForeignStore(f"the source is store {theirs.store_id.hex()}, the copy is of store {ours.store_id.hex()}")
    if theirs.branch.id != ours.branch.id and accept_branch != theirs.branch.id:
        raise OtherBranch(f"the source is on branch {theirs.branch.id.hex()}, which left its last one at transaction "
                          f"{theirs.branch.start.txid}; the copy is on branch {ours.branch.id.hex()}")
    if ours.branches != theirs.branches[: len(ours.branches)]:
        raise Diverged("the copy is on a branch that the source was never on")
    if len(theirs.branches) > len(ours.branches) and end.txid > theirs.branches[len(ours.branches)].start.txid:
        raise Diverged(f"the source left the copy's branch at transaction "
                       f"{theirs.branches[len(ours.branches)].start.txid}, and the copy continues to {end.txid}")
    if end.txid > info.durable.txid:
        raise AheadOfSource(f"the copy ends at transaction {end.txid}, the source at {info.durable.txid}")
