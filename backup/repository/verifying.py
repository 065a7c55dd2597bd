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
from .plan import FOREVER, Damage, lost
from .reports import LostPoints, RepositoryVerified
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
    """What was read, and what is wrong. `bad`: frames, by pack and number. `good`: the last transaction of the log that
    is read now and can be read. `tails`: where the archived log of the branches ends."""

    store: ObjectStore
    seal: Seal
    env: Env
    sample: float
    packs: set[str] = field(default_factory=set)
    indexes: set[str] = field(default_factory=set)
    seen: _Seen = field(default_factory=_Seen)
    bad: set[tuple[str, int]] = field(default_factory=set)
    damaged: list[str] = field(default_factory=list)
    damage: Damage = field(default_factory=Damage)
    tails: dict[str, Tail] = field(default_factory=dict)
    good: int = 0
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
        good = self._log(image)
        if good is not None and not bad:
            self.damage.images[image.session] = good
        return bad if good is None else {*bad, ""}

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

    def _log(self, image: Image) -> int | None:
        """Read an image's own log. Returns up to which transaction it is good; None: it is whole."""
        at = image.image_position
        for number in range(1, image.log_objects + 1):
            name, self.good = names.image_log(image.session, number), at.txid
            try:
                piece, records = pieces.decode(self.seal, name, self.store.get(name), self.store)
                at = self._piece(name, piece, records, at, names.image_files(image.session))
            except _WRONG as error:
                self.wrong(error)
                return self.good
        if at == image.end:
            return None
        self.wrong(Damaged(f"ends at {at}, and the catalog says {image.end}",
                           path=f"{self.store.url}/{names.IMAGES}/{image.session}/log"))
        return min(at.txid, image.end.txid - 1)

    # --- log ------------------------------------------------------------------------------------------------------

    def _piece(self, name: str, piece: pieces.Piece, records: Iterator[Record], at: Position, folder: str
               ) -> Position:
        self.good = min(at.txid, piece.after.txid)
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
            self.good = record.txid
        self.logs += 1
        return piece.end

    def branch(self, archive: Archive, branch: str, catalog: Catalog) -> None:
        def look(_: CatalogState) -> tuple[Tail | None, list[Damaged]]:
            noted: list[Damaged] = []
            return archive.tail(branch, noted), noted

        tail, noted = catalog.settled(look)
        for error in noted:
            self.wrong(error)
        if tail is not None:
            self.tails[branch] = tail
        unreadable = self.damage.log.setdefault(branch, [])
        left, done = list(catalog.state.branches[branch].runs), list[Run]()
        while left:
            run = left.pop(0)
            done.append(run)
            stretches = self._run(archive, branch, run, tail)
            if stretches is None:
                left = [one for one in archive.state.branches[branch].runs if one not in done]
            else:
                unreadable += stretches
        if noted and tail is not None:
            unreadable.append((tail.end.txid, FOREVER))

    def _run(self, archive: Archive, branch: str, run: Run, tail: Tail | None) -> list[tuple[int, int]] | None:
        """Read the slots of a run. What comes after a damage is read, too. Returns what cannot be read, as `Damage.log`
        says it; None: an expiry dropped some of the run meanwhile, or all."""
        last, end = run.last or run.first - 1, run.end or run.after
        if run.last is None and tail is not None:
            last, end = tail.slot, tail.end
        at, slot, unreadable = run.after, run.first, list[tuple[int, int]]()
        after_damage = False  # of which nobody knows where it ends
        while slot <= last and at.txid < end.txid:  # an archiver that found damaged pieces after it put them anew
            unit, piece = archive.unit_with(branch, slot), None
            name = names.piece(branch, slot) if unit is None else unit.name
            try:
                piece, records = archive.piece(branch, slot) if unit is None else archive.unit(unit)
                if after_damage and piece.after.txid > at.txid:
                    unreadable.append((at.txid, piece.after.txid))
                    at = piece.after
                after_damage = False
                at = self._piece(name, piece, records, at, names.branch_files(branch))
            except _WRONG as error:
                if archive.went_on():
                    if run not in archive.state.branches[branch].runs:
                        return None
                    continue
                self.wrong(Damaged("is missing: the archived log goes on after it", path=f"{self.store.url}/{name}")
                           if piece is None and isinstance(error, ObjectMissing) else error)
                ends = piece.end if piece is not None else None if unit is None else unit.end
                if ends is None:
                    after_damage = True
                elif ends.txid > at.txid:
                    unreadable.append((at.txid if piece is None else self.good, ends.txid))
                    at = ends
            slot = slot + 1 if unit is None else unit.last + 1
        if at.txid < end.txid:
            if not after_damage:
                self.wrong(Damaged(f"ends at {at}, and is said to end at {end}",
                                   path=f"{self.store.url}/{names.LOG}/{branch}"))
            unreadable.append((at.txid, end.txid))
        return unreadable


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
        progress("images", done, total)
    for done, branch in enumerate(list(state.branches), total - len(state.branches) + 1):
        found.branch(archive, branch, catalog)
        progress("images", done, total)
    state = catalog.refresh()
    for session, packs in bad.items():
        if sample < 1 and (before := state.proofs.get((session, "verify"))):  # it may not have been read this time
            packs |= set(before["damaged"])
        if packs:
            found.damage.images.setdefault(session, -1)
        entry: Entry = {"do": "proof", "of": session, "kind": "verify", "good": not packs, "sample": sample,
                        "damaged": sorted(packs), "time_us": env.clock.now_us()}
        catalog.note(entry)
    gone = tuple(LostPoints(branch=branch, first=first, last=last) for branch in state.branches
                 for first, last in lost(state, branch, found.tails, found.damage))
    return RepositoryVerified(
        repository=store.url, images=len(bad), packs=len(found.packs), blocks=found.blocks,
        pieces=found.logs, bytes=found.read, sample=sample, damaged=tuple(found.damaged),
        bad_images=tuple(session for session, packs in bad.items() if packs), lost=gone,
        seconds=env.clock.monotonic() - started)
