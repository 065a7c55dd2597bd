"""An image: taken from a running source, stored so that only what changed since the last image costs anything.

    begin        the catalog has the session; a lease holds image and log
    blocks       each piece of a file is read once, by the source, which sends what the last image lacks
    log          the records from the image's position to what is published now, which make the image whole by itself
    root         put after everything that it names
    image        the entry in the catalog: from now on there is an image

What a run that died has put is used by the next one: its packs say which blocks they have. They are not deleted before
an entry `abort`, which bars the session. If an expiry drops a pack that this session means to use, the entry `image` is
not made, and another session stores those blocks again.
"""

from __future__ import annotations

import logging
import socket  # noqa: TID251  for the machine's name
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ...engine.contract.image import ImageFile
from ...engine.env import Env, Lock
from ...engine.env.shown import printable
from ...engine.errors import Damaged, Diverged, SourceRestarted, Unsupported
from ...engine.model.records import Record
from ...engine.source.interface import CHUNK_BYTES, Block, Grant, Source, SourceInfo, block_digest
from ...engine.store.leases import MAX_OWNER
from ...replay.copy import kept_alive
from ...replay.files import SPARE_BYTES, Ahead, Progress, check_names
from . import names
from .attached import store_attachment
from .blocks import (
    GROUP_BYTES,
    LEAF_BYTES,
    PackUse,
    PackWriter,
    Part,
    Placed,
    Root,
    TreeReader,
    encode_leaf,
    leaf_body,
    pack_index,
)
from .catalog import Catalog
from .errors import BlocksDropped, ObjectMissing, SessionAborted
from .pieces import batches, complete_until, encode, store_payloads
from .restoring import tree_of
from .sealed import Body, Kind, Seal, compressed
from .state import CatalogState, Entry, Image, SourceDigest, Synthetic
from .storage.early import check_room, tell_clock, tell_room
from .storage.interface import ObjectStore
from .storage.putting import put_own

logger = logging.getLogger("holdfast.repository")

_LEAST_ALIVE = 0.4
"""A block in a pack of which the last image uses less than this share is stored again, so that the pack can go."""
_REMEMBERED = 1 << 16
"""Blocks of this session that are looked for when another one has the same content."""


_INDEXES = 16
WHOLE = "whole image"
"""The stage of `progress` in which all blocks are sent, because there is no image to compare with. Else it is `image`.
"""


class _Piece(NamedTuple):
    """What was read of a piece of a file: its blocks; where those are that are known; and frames of those that are not,
    compressed, each with its blocks."""

    blocks: list[Block]
    known: list[Placed | None]
    frames: list[tuple[Body, list[Part]]]


def _frames(file: str, new: Sequence[tuple[int, Block]]) -> list[tuple[Body, list[Part]]]:
    """Blocks of a file, each with its number, as frames. From any thread."""
    groups: list[tuple[list[bytes | memoryview], list[Part]]] = []
    filled = GROUP_BYTES
    for number, block in new:
        assert block.data is not None
        size = len(block.data)
        if filled + size > GROUP_BYTES:
            groups.append(([], []))
            filled = 0
        groups[-1][0].append(block.data)
        groups[-1][1].append(Part(block.digest, file, number, filled, size))
        filled += size
    return list(zip(compressed([b"".join(data) for data, _ in groups]), [parts for _, parts in groups], strict=True))


@dataclass(slots=True)
class Known:
    """Blocks that are stored already: those of the last image, and of runs that died. Read as they are needed."""

    base: TreeReader | None
    thin: set[str]
    lock: Lock
    load: Callable[[str], tuple[bytes, list[tuple[str, int, Placed]]]]
    resumed: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    packs: dict[str, PackUse] = field(default_factory=dict)
    _loaded: dict[str, dict[tuple[str, int], Placed]] = field(default_factory=dict)

    def blocks(self, file: str, offset: int, length: int, block_bytes: int) -> list[Placed | None]:
        """What is known of the blocks of these bytes, one for each block."""
        first = offset // block_bytes
        found: list[Placed | None] = [None] * (-(-length // block_bytes))
        try:
            if self.base is not None:
                placed, _ = self.base.blocks_at(file, offset, length)
                for n, place in enumerate(placed):
                    if place.pack not in self.thin:
                        found[n] = place
            for pack in self.resumed.get((file, offset // LEAF_BYTES), ()):
                index = self._index(pack)
                for n in range(len(found)):
                    found[n] = index.get((file, first + n), found[n])
        except (Damaged, ObjectMissing) as error:  # so it is not known, and is stored again
            logger.warning("%s: blocks of %s are stored anew", error, file)
        return found

    def _index(self, pack: str) -> dict[tuple[str, int], Placed]:
        with self.lock:
            if (index := self._loaded.get(pack)) is None:
                self.packs[pack].header, listed = self.load(pack)
                self.packs[pack].content = sum(place.size for _, _, place in listed)
                if len(self._loaded) >= _INDEXES:
                    self._loaded.pop(next(iter(self._loaded)))
                index = self._loaded[pack] = {(file, number): place for file, number, place in listed if number >= 0}
            return index

    def pack(self, name: str) -> PackUse:
        """A pack that something known is in."""
        return self.base.root.packs[name] if self.base is not None and name in self.base.root.packs else (
            self.packs[name])


@dataclass(slots=True)
class Imaging:
    """One run. `who` names it to the source and in the catalog. `rate`: bytes of the image that are read in a second at
    most; None: no bound. `synthetic`: of an image that is made in the repository. `digest`: ask the source for the
    digest of its content, too. `base`: the image that this one was compared with; None: none."""

    store: ObjectStore
    seal: Seal
    catalog: Catalog
    source: Source
    info: SourceInfo
    session: str
    who: str
    block_bytes: int
    lease_ttl: float
    rate: float | None
    progress: Progress
    env: Env
    synthetic: Synthetic | None = None
    digest: bool = False
    base: Image | None = field(default=None, init=False)

    def take(self) -> Image:
        """Take the image.

        Raises:
            BlocksDropped: an expiry dropped blocks of the last image that this one was to use. Another session finds
                what this one has stored, and stores those blocks again.
            SessionAborted: an expiry gave this run up for dead.
            Damaged, LeaseExpired, SourceUnavailable, SourceRestarted, TooManyLeases, DiskFull, StorageUnavailable.
        """
        check_room(self.store, SPARE_BYTES)
        begun_us = self.env.clock.now_us()
        state = self.catalog.append(lambda _: {"do": "begin", "session": self.session, "who": self.who,
                                               "time_us": self.env.clock.now_us()})
        if begun := state.sessions.get(self.session):  # else an expiry gave it up at this moment: told at the end
            tell_clock(self.store, names.numbered(names.CATALOG, begun["number"]), begun_us, self.env)
        grant = self.source.lease(self.who, image=True, ttl=self.lease_ttl)
        packs = PackWriter(self.store, self.seal, self.session, self.env)
        try:
            check_names(grant.files)
            with kept_alive(self.source, grant, self.env.scheduler):
                base = self._base(state)
                if base is None:
                    self._tell_whole(sum(file.size for file in grant.files), not state.images)
                root = self._files(grant, self._known(state, base), packs)
                said = self._log(grant)
                packs.finish()
                return self._finish(root, said, packs)
        finally:
            packs.close()
            self._release(grant)

    def _release(self, grant: Grant) -> None:
        try:
            self.source.release(grant.id)
        except Exception as error:  # it expires by itself
            logger.info("the lease of session %s was not given back: %s", self.session, error)

    # --- what is stored already -----------------------------------------------------------------------------------

    def _base(self, state: CatalogState) -> TreeReader | None:
        found = base_of(self.store, self.seal, state, self.info, self.block_bytes, self.env,
                        self.synthetic.made_of if self.synthetic else "")
        if found is None:
            return None
        self.base, tree = found
        return tree

    def _tell_whole(self, total: int, first: bool) -> None:
        """Say before the first block that there is nothing to compare with. It is expected of the first image."""
        logger.log(logging.INFO if first else logging.WARNING, "there is no image in %s that this one can be compared "
                   "with: all %s bytes are sent, but what a run that died has stored", self.store.url, f"{total:,}")
        tell_room(self.store, total)
        self.progress(WHOLE, 0, total)

    def _known(self, state: CatalogState, base: TreeReader | None) -> Known:
        thin = set() if base is None else {name for name, use in base.root.packs.items()
                                           if use.used < _LEAST_ALIVE * use.content or name in state.dropped}
        for proof in state.proofs.values():
            thin |= set(proof.get("damaged", ()))
        def load(pack: str) -> tuple[bytes, list[tuple[str, int, Placed]]]:
            return pack_index(self.store, self.seal, pack, known.packs[pack].size)

        known = Known(base, thin, self.env.scheduler.lock(), load)
        for session, begun in state.sessions.items():
            if begun["who"] != self.who or session == self.session:
                continue
            for listed in self.store.list(f"{names.PACKS}/{session}/"):
                known.packs[listed.name] = PackUse(b"", listed.size)
                try:
                    _, index = load(listed.name)
                except (Damaged, ObjectMissing) as error:
                    logger.warning("%s: it is not used", error)
                    continue
                for file, number, _ in index:
                    if number >= 0:
                        of = known.resumed.setdefault((file, number * self.block_bytes // LEAF_BYTES), [])
                        if listed.name not in of:
                            of.append(listed.name)
        return known

    # --- blocks ---------------------------------------------------------------------------------------------------

    def _files(self, grant: Grant, known: Known, packs: PackWriter) -> Root:
        root = Root(self.block_bytes)
        total, done = sum(file.size for file in grant.files), 0
        started = self.env.clock.monotonic()
        remembered: dict[bytes, Placed] = {}

        def read(name: str, offset: int, length: int) -> _Piece:
            there = known.blocks(name, offset, length, self.block_bytes)
            blocks = self.source.read_blocks(grant.id, name, offset, length, self.block_bytes,
                                             [b"" if place is None else place.digest for place in there])
            new: dict[bytes, tuple[int, Block]] = {}
            for number, block in enumerate(blocks, offset // self.block_bytes):
                if block.data is not None and block.digest not in remembered:
                    new.setdefault(block.digest, (number, block))
            return _Piece(blocks, there, _frames(name, list(new.values())))

        pieces = [(file.name, offset, min(CHUNK_BYTES, file.size - offset)) for file in grant.files
                  for offset in range(0, file.size, CHUNK_BYTES)]
        ahead = Ahead(read, pieces, self.env.scheduler)
        try:
            for file in grant.files:
                leaves: list[Placed] = []
                for start in range(0, file.size, LEAF_BYTES):
                    blocks: list[Placed] = []
                    for offset in range(start, min(start + LEAF_BYTES, file.size), CHUNK_BYTES):
                        blocks += self._stored(ahead.take(), file.name, offset // self.block_bytes, packs, remembered)
                        done += min(CHUNK_BYTES, file.size - offset)
                        self.progress("image" if known.base else WHOLE, done, total)
                        self._throttle(started, done)
                    leaves.append(self._leaf(file, start, blocks, known, packs, root))
                root.files.append((file, leaves))
        finally:
            ahead.close()
        packs.flush()
        for name, use in root.packs.items():
            stored = packs.packs.get(name) or known.pack(name)
            use.size, use.content = stored.size, stored.content
        return root

    def _stored(self, piece: _Piece, file: str, first: int, packs: PackWriter, remembered: dict[bytes, Placed]
                ) -> list[Placed]:
        """Store the new blocks of a piece, whose first one has the number `first`. Returns where all of them are."""
        def store(body: Body, parts: list[Part]) -> None:
            for place in packs.add(body, parts):
                if len(remembered) >= _REMEMBERED:
                    del remembered[next(iter(remembered))]
                remembered[place.digest] = place

        for body, parts in piece.frames:
            store(body, parts)
        places = []
        for number, (block, there) in enumerate(zip(piece.blocks, piece.known, strict=True), first):
            if block.data is None:
                assert there is not None
                places.append(there)
                continue
            if block.digest not in remembered:  # it was when the piece was read, and has been forgotten since
                for body, parts in _frames(file, [(number, block)]):
                    store(body, parts)
            places.append(remembered[block.digest])
        return places

    def _leaf(self, file: ImageFile, start: int, blocks: list[Placed], known: Known, packs: PackWriter,
              root: Root) -> Placed:
        """Store the leaf of these blocks, unless the last image has the same one; and note what they use."""
        headers = {name: (packs.packs.get(name) or known.pack(name)).header for name in {b.pack for b in blocks}}
        content = encode_leaf(blocks, headers)
        digest = block_digest(content)
        place = None
        if known.base is not None and (earlier := known.base.leaf_at(file.name, start)) is not None:
            place = earlier if earlier.digest == digest and earlier.pack not in known.thin else None
            if place is not None:
                headers[place.pack] = known.base.root.packs[place.pack].header
        if place is None:
            [place] = packs.add(leaf_body(content), [Part(digest, file.name, -1 - start // LEAF_BYTES, 0,
                                                          len(content))])
            headers[place.pack] = packs.packs[place.pack].header
        for used in {*blocks, place}:
            root.packs.setdefault(used.pack, PackUse(headers[used.pack])).used += used.size
        return place

    def _throttle(self, started: float, done: int) -> None:
        if self.rate is not None:
            early = started + done / self.rate - self.env.clock.monotonic()
            if early > 0:
                self.env.clock.sleep(early)

    # --- log ------------------------------------------------------------------------------------------------------

    def _log(self, grant: Grant) -> Entry:
        """Store the log that makes the image whole. Returns what the catalog is to say of the image."""
        confirmed = self.source.confirm(grant.id)
        content = self._content(grant) if self.digest else None
        if content is not None:  # the image's own log is to reach it
            confirmed = replace(self.source.confirm(grant.id), consistent_from=confirmed.consistent_from)
        info = self.source.info()
        if not self.info.instance == grant.instance == info.instance:
            raise SourceRestarted(f"the source of store {self.info.history.store_id.hex()} has been restarted, or "
                                  "another one has taken its place")
        consistent_from = confirmed.consistent_from if grant.moving else grant.position
        first_time = last_time = grant.time_us
        end, payloads, log_bytes, objects = grant.position, set[int](), 0, 0

        def passing() -> Iterator[Record]:
            nonlocal first_time
            for record in self.source.read_log(grant.id, grant.position, confirmed.published.txid):
                if record.txid <= consistent_from.txid:
                    first_time = record.time_us
                if record.txid == consistent_from.txid and record.chain != consistent_from.chain:
                    raise Diverged(f"the source confirmed the image at {consistent_from}, and its log has another "
                                   "transaction there")
                yield record

        for batch in batches(grant.position, passing()):
            objects += 1
            for record in batch.records:
                if record.attachment is not None:
                    log_bytes += store_attachment(self.store, self.seal, self.source, grant.id, record.attachment,
                                                  names.image_files(self.session))
            end, last_time = batch.end, batch.records[-1].time_us
            piece = batch.piece(info.history, complete_until(batch, end == confirmed.published,
                                                             confirmed.complete_until_us), 0, self.env)
            name = names.image_log(self.session, objects)
            log_bytes += store_payloads(self.store, self.seal, name, batch.records)
            data = encode(self.seal, name, piece, batch.records)
            put_own(self.store, name, data, self.env)
            log_bytes += len(data)
            payloads |= set(piece.payloads)
            self.progress("log", end.txid - grant.position.txid, confirmed.published.txid - grant.position.txid)
        if end != confirmed.published:
            raise Diverged(f"the source announced {confirmed.published} and sent {end}")
        image = Image(session=self.session, order=0, history=info.history, state_format=info.state_format,
                      payloads=tuple(sorted(payloads)), image_position=grant.position, consistent_from=consistent_from,
                      end=end, moving=grant.moving, image_time_us=grant.time_us, first_time_us=first_time,
                      last_time_us=last_time, complete_until_us=confirmed.complete_until_us, created_us=0,
                      bytes=sum(file.size for file in grant.files), new_bytes=0, log_bytes=log_bytes,
                      log_objects=objects, synthetic=self.synthetic, source_digest=content,
                      source="" if self.synthetic else lineage(self.info))
        return image.to_wire()

    def _content(self, grant: Grant) -> SourceDigest | None:
        try:
            content = self.source.content_digest(grant.id)
        except Unsupported as error:
            logger.warning("%s: a rehearsal will have nothing to compare with", error.message)
            return None
        return SourceDigest(content.position.txid, content.digest)

    def _finish(self, root: Root, said: Entry, packs: PackWriter) -> Image:
        """Put the root, and make the image real. It may be dropped again before this returns."""
        name = names.root(self.session)
        root.engine = self.info.engine
        root.image = said | {"content_bytes": sum(pack.content for pack in packs.packs.values()),
                             "new_bytes": packs.stored, "created_us": self.env.clock.now_us()}
        put_own(self.store, name, self.seal.seal(Kind.IMAGE, name, root.encode()), self.env)
        entry: Entry = {"do": "image", **root.image}
        order = 0

        def decide(state: CatalogState) -> Entry:
            nonlocal order
            order = state.number + 1
            if self.session in state.barred:
                raise SessionAborted(f"the run {self.session[:8]} was given up for dead by an expiry",
                                     hint="run it again; what it has stored and is still there is used")
            if dropped := [pack for pack in root.packs if pack in state.dropped]:
                raise BlocksDropped(f"an expiry has dropped {len(dropped)} packs that the image was to use")
            return entry

        self.catalog.append(decide)
        return Image.from_wire(entry, order)


def lineage(info: SourceInfo) -> str:
    """Whose files a source has. Each member of a cluster lays out its own, and a restart changes nothing."""
    return printable(info.path if info.member is None else f"member {info.member.name}")


def base_of(store: ObjectStore, seal: Seal, state: CatalogState, info: SourceInfo, block_bytes: int, env: Env,
            made_of: str = "") -> tuple[Image, TreeReader] | None:
    """The image with which a new one of this source is compared: of the same format, in blocks of the same size. None:
    there is none. A get for each image that is looked at."""
    for image in state.bases(lineage(info), made_of):
        if image.state_format == info.state_format:
            try:
                tree = tree_of(store, seal, image, env)
            except (Damaged, ObjectMissing) as error:
                logger.warning("%s: image %s is not compared with", error, image.session[:8])
                continue
            if tree.root.block_bytes == block_bytes:
                return image, tree
    return None


def who(what: str) -> str:
    """How a run names itself to the source and in the catalog. A later run of the same name uses what it has stored."""
    return printable(f"{what} on {socket.gethostname()}")[:MAX_OWNER]
