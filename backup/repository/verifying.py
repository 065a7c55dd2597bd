"""Verifying: every object that is needed is read, and compared with what names it. No engine is needed.

Of the catalog everything is read, also what a checkpoint stands for: it is needed if that is damaged."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...engine.env import Env
from ...engine.errors import Damaged, HoldfastError, UnsupportedFormat
from ...engine.model.positions import Position
from ...engine.model.records import Record
from ...engine.source.interface import LEAST_BLOCK
from ...replay.files import Progress
from . import names, pieces
from .archive import Archive, Tail
from .attached import read_attachment
from .blocks import GROUP_BYTES, Placed, TreeReader, pack_index
from .catalog import Catalog
from .errors import ObjectMissing
from .reports import RepositoryVerified
from .restoring import tree_of
from .sealed import Seal
from .state import CatalogState, Entry, Image, Run
from .storage.interface import ObjectStore

_WRONG = Damaged, ObjectMissing, UnsupportedFormat
_MOST_TOLD = 100
assert GROUP_BYTES // LEAST_BLOCK <= 64, "_Seen has a bit for each block of a frame"


class _Seen:
    """Blocks that were read: images share them. A bit for each, in 8 bytes for a frame: 32 MiB for a terabyte."""

    def __init__(self) -> None:
        self._packs: dict[str, array[int]] = {}

    def note(self, place: Placed) -> bool:
        """Whether a block is new here. It is not from now on."""
        seen, bit = self._packs.setdefault(place.pack, array("Q")), 1 << place.start // LEAST_BLOCK
        seen.extend([0] * (place.frame + 1 - len(seen)))
        new = not seen[place.frame] & bit
        seen[place.frame] |= bit
        return new

    def forget(self, pack: str, frame: int) -> None:
        self._packs[pack][frame] = 0


@dataclass(slots=True)
class _Found:
    """What was read, and what is wrong. `bad`: frames, by pack and number."""

    store: ObjectStore
    seal: Seal
    env: Env
    sample: float
    packs: set[str] = field(default_factory=set)
    indexes: set[str] = field(default_factory=set)
    seen: _Seen = field(default_factory=_Seen)
    bad: set[tuple[str, int]] = field(default_factory=set)
    damaged: list[str] = field(default_factory=list)
    blocks: int = 0
    logs: int = 0
    read: int = 0

    def wrong(self, error: HoldfastError) -> None:
        if error.message not in self.damaged and len(self.damaged) < _MOST_TOLD:
            self.damaged.append(str(error.message))

    # --- images ---------------------------------------------------------------------------------------------------

    def image(self, image: Image) -> set[str]:
        """Read an image. Returns the packs that are damaged; "" stands for its root or log."""
        bad: set[str] = set()
        try:
            tree = tree_of(self.store, self.seal, image, self.env)
        except _WRONG as error:
            self.wrong(error)
            return {""}
        for _, leaves in tree.root.files:
            for place in leaves:
                try:
                    leaf = tree.leaf(place)
                except _WRONG as error:
                    self.wrong(error)
                    bad.add(place.pack)
                    continue
                bad |= self._blocks(tree, leaf.blocks, leaf.headers)
        if self.sample == 1:
            self._indexes(tree)
        if not self._log(image):
            bad.add("")
        return bad

    def _indexes(self, tree: TreeReader) -> None:
        """Read the indexes of packs. No restore needs them, so an image is not bad without."""
        for name, use in tree.root.packs.items():
            if name not in self.indexes:
                self.indexes.add(name)
                try:
                    pack_index(self.store, self.seal, name, use.size)
                except _WRONG as error:
                    self.wrong(error)

    def _blocks(self, tree: TreeReader, blocks: list[Placed], headers: dict[str, bytes]) -> set[str]:
        drawn = {frame: self._drawn() for frame in dict.fromkeys((place.pack, place.frame) for place in blocks)}
        fresh = [place for place in dict.fromkeys(blocks) if drawn[place.pack, place.frame] and self.seen.note(place)]
        bad = {pack for pack, frame in drawn if (pack, frame) in self.bad}
        self.packs |= {place.pack for place in fresh}
        try:
            for _, content in tree.read(fresh, headers):
                self.blocks += 1
                self.read += len(content)
        except _WRONG:
            for place in fresh:  # one by one, to know which
                try:
                    list(tree.read([place], headers))
                except _WRONG as error:
                    self.wrong(error)
                    self.bad.add((place.pack, place.frame))
                    bad.add(place.pack)
        return bad

    def _drawn(self) -> bool:
        return self.sample == 1 or int.from_bytes(self.env.randomness.token(4), "big") < self.sample * (1 << 32)

    def _log(self, image: Image) -> bool:
        at = image.image_position
        for number in range(1, image.log_objects + 1):
            name = names.image_log(image.session, number)
            try:
                piece, records = pieces.decode(self.seal, name, self.store.get(name))
                at = self._piece(name, piece, records, at, names.image_files(image.session))
            except _WRONG as error:
                self.wrong(error)
                return False
        if at != image.end:
            self.wrong(Damaged(f"ends at {at}, and the catalog says {image.end}",
                               path=f"{self.store.url}/{names.IMAGES}/{image.session}/log"))
        return at == image.end

    # --- log ------------------------------------------------------------------------------------------------------

    def _piece(self, name: str, piece: pieces.Piece, records: Iterator[Record], at: Position, folder: str
               ) -> Position:
        if piece.after != at and piece.after.txid >= at.txid:  # what was merged meanwhile has some of it again
            raise Damaged(f"begins after {piece.after}, and what is before it ends at {at}",
                          path=f"{self.store.url}/{name}")
        for record in records:
            if record.txid == at.txid and record.position != at:
                raise Damaged(f"has another transaction {at.txid} than what is before it",
                              path=f"{self.store.url}/{name}")
            self.read += len(record.header) + len(record.payload)
            if record.attachment is not None:
                size = sum(map(len, read_attachment(self.store, self.seal, record.attachment, folder)))
                if size != record.attachment.size:
                    raise Damaged(f"has {size:,} bytes, and transaction {record.txid} says "
                                  f"{record.attachment.size:,}", path=f"{self.store.url}/{record.attachment.name}")
                self.read += size
        self.logs += 1
        return piece.end

    def branch(self, archive: Archive, branch: str, catalog: Catalog) -> None:
        def look(_: CatalogState) -> tuple[Tail | None, list[Damaged]]:
            noted: list[Damaged] = []
            return archive.tail(branch, noted), noted

        tail, noted = catalog.settled(look)
        for error in noted:
            self.wrong(error)
        left, done = list(catalog.state.branches[branch].runs), list[Run]()
        while left:
            run = left.pop(0)
            done.append(run)
            end = run.end if run.end is not None else tail.end if tail is not None else run.after
            at = run.after
            try:
                for piece, records in archive.read(branch, run.after.txid, end.txid):
                    at = self._piece(f"{names.LOG}/{branch}", piece, records, at, names.branch_files(branch))
                if at.txid < end.txid:
                    raise Damaged(f"ends at {at}, and is said to end at {end}",
                                  path=f"{self.store.url}/{names.LOG}/{branch}")
            except _WRONG as error:
                now = catalog.refresh().branches[branch].runs
                if run in now:
                    self.wrong(error)
                else:  # an expiry dropped some of it meanwhile, or all
                    left = [one for one in now if one not in done]


def verify(store: ObjectStore, seal: Seal, catalog: Catalog, archive: Archive, sample: float, env: Env,
           progress: Progress) -> RepositoryVerified:
    """See `Repository.verify`. Notes a proof for each image, with the packs that are damaged, so that the next backup
    stores their blocks anew."""
    started, state = env.clock.monotonic(), archive.state
    found = _Found(store, seal, env, sample)
    catalog.verify(found.wrong)
    bad: dict[str, set[str]] = {}
    total = len(state.images) + len(state.branches)
    for done, image in enumerate(list(state.images.values()), 1):
        known, packs = len(found.damaged), found.image(image)
        if (packs or len(found.damaged) > known) and image.session not in catalog.refresh().images:  # dropped meanwhile
            del found.damaged[known:]
            for pack, frame in found.bad:
                found.seen.forget(pack, frame)
            found.bad.clear()
        else:
            bad[image.session] = packs
        progress("verify", done, total)
    for done, branch in enumerate(list(state.branches), total - len(state.branches) + 1):
        found.branch(archive, branch, catalog)
        progress("verify", done, total)
    for session, packs in bad.items():
        if sample < 1 and (before := state.proofs.get((session, "verify"))):  # it may not have been read this time
            packs |= set(before["damaged"])
        entry: Entry = {"do": "proof", "of": session, "kind": "verify", "good": not packs, "sample": sample,
                        "damaged": sorted(packs), "time_us": env.clock.now_us()}
        catalog.note(entry)
    return RepositoryVerified(
        repository=store.url, images=len(state.images), packs=len(found.packs), blocks=found.blocks,
        pieces=found.logs, bytes=found.read, sample=sample, damaged=tuple(found.damaged),
        bad_images=tuple(session for session, packs in bad.items() if packs), seconds=env.clock.monotonic() - started)
