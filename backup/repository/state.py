"""What a catalog says: the state that its entries make, one after the other. No I/O.

An entry is a map. `do` names what it does:

    store     id, engine            the repository is this store's
    accept    history               a branch may be archived and backed up here
    begin     session, who, time_us an image is being made
    image     session, …            it is whole: see `Image`
    abort     session               it never will be: an entry `image` that comes later is refused
    run       branch, slot, after, ended, until_us
                                    from this slot on, the log of a branch begins anew after a position: the first time,
                                    or after a gap. `ended`, `until_us`: where the run before it ends. Who begins to
                                    archive says the newest run again, so that the writer before cannot begin another
    merge     branch, first, last, …  pieces are in one object as well: see `Unit`
    drop      images, packs, merged, slots
                                    these objects may be deleted from now on
    lease     id, who, time_us, until_us, image, branch, txid
                                    a restore to this point is running
    release   id                    it has ended
    mark      name, branch, txid, keep, time_us
                                    a restore point with a name
    unmark    name
    proof     of, kind, good, …     the result of a verify or a rehearsal

`number` and `nonce` are in each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

from ...engine.errors import Damaged, InvalidInput, UnsupportedFormat
from ...engine.model.positions import History, Position

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Synthetic:
    """How an image came to be that was made in the repository: of the image of session `made_of`, and archived log.
    `digest`: of the content at the image's end, as the engine's view said it then."""

    made_of: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class SourceDigest:
    """The digest of the content at transaction `txid`, as the source computed it when the image was taken."""

    txid: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A whole image.

    Attributes:
        session: the id of the run that made it; it names the image.
        order: number of its catalog entry: images are in this order, whatever their clocks said.
        history: the source's when it was made.
        state_format, payloads: versions of the state, and of the transactions in the image's own log.
        image_position, consistent_from: as in a target's manifest.
        end: where the image's own log ends: it restores to any transaction from `consistent_from` to here by itself.
        moving: whether the bytes may be a mixture of the states between the two.
        image_time_us: commit time of the transaction at `image_position`; 0 if it is not known.
        first_time_us: commit time of the transaction at `consistent_from`; 0 if it is not known.
        last_time_us: of the one at `end`; 0 if it is not known.
        complete_until_us: every transaction committed up to this time is at or below `end`.
        created_us: when it was whole, by the clock of whoever made it.
        bytes: of the image's files. content_bytes: of the blocks and leaves that had to be stored for it, before they
            were compressed. new_bytes: what they take as stored. log_bytes, log_objects: of its own log, as stored.
        synthetic: None: it was taken of a source.
        source_digest: None: the source was not asked for one.
        source: whose files these are: see `lineage`.
    """

    session: str
    order: int
    history: History
    state_format: int
    payloads: tuple[int, ...]
    image_position: Position
    consistent_from: Position
    end: Position
    moving: bool
    image_time_us: int
    first_time_us: int
    last_time_us: int
    complete_until_us: int
    created_us: int
    bytes: int
    new_bytes: int
    log_bytes: int
    log_objects: int
    synthetic: Synthetic | None = None
    source_digest: SourceDigest | None = None
    content_bytes: int = 0
    source: str = ""

    @property
    def noted(self) -> SourceDigest | None:
        """The digest that was noted when the image was made, by the source or in the repository."""
        return self.source_digest if self.synthetic is None else SourceDigest(self.end.txid, self.synthetic.digest)

    def to_wire(self) -> Entry:
        return {**{name: getattr(self, name) for name in self.__slots__ if name != "order"},
                "history": self.history.to_wire(), "payloads": list(self.payloads),
                "image_position": list(self.image_position), "consistent_from": list(self.consistent_from),
                "end": list(self.end), "synthetic": self.synthetic and list(astuple(self.synthetic)),
                "source_digest": self.source_digest and list(astuple(self.source_digest))}

    @classmethod
    def from_wire(cls, body: Mapping[str, Any], order: int) -> Image:
        fields = {name: body[name] for name in cls.__slots__ if name != "order"}
        return cls(**{**fields, "history": History.from_wire(body["history"]), "payloads": tuple(body["payloads"]),
                      "image_position": Position(*body["image_position"]), "order": order,
                      "consistent_from": Position(*body["consistent_from"]), "end": Position(*body["end"]),
                      "synthetic": body["synthetic"] and Synthetic(*body["synthetic"]),
                      "source_digest": body["source_digest"] and SourceDigest(*body["source_digest"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Pieces of one branch in one object: slots `first` to `last`, records after `after` to `end`.

    `complete_until_us`: as a piece's. `level`: 1 for merged pieces, 2 for merged units of level 1, and so on.
    `attachments`: names of the files that its records name.
    """

    name: str
    level: int
    first: int
    last: int
    after: Position
    end: Position
    first_time_us: int
    last_time_us: int
    complete_until_us: int
    bytes: int
    attachments: tuple[str, ...]

    def to_wire(self) -> Entry:
        return {**asdict(self), "attachments": list(self.attachments), "after": list(self.after), "end": list(self.end)}

    @classmethod
    def from_wire(cls, body: Mapping[str, Any]) -> Unit:
        fields = {name: body[name] for name in cls.__slots__}
        return cls(**{**fields, "after": Position(*body["after"]), "end": Position(*body["end"]),
                      "attachments": tuple(body["attachments"])})


@dataclass(frozen=True, slots=True)
class Run:
    """Slots of one branch without a gap: from `first` on, records after `after`. `last` and `end`: None while it is the
    branch's newest run, which grows without an entry. `until_us`: up to when it is complete at `end`."""

    first: int
    after: Position
    last: int | None = None
    end: Position | None = None
    until_us: int = 0


@dataclass(slots=True)
class BranchLog:
    """The archived log of one branch. Pieces that are in units may be missing. `reached`: by level, up to which slot
    there are units, or were: none is made there again, so an object that no entry names can go."""

    history: History
    runs: list[Run] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    reached: dict[int, int] = field(default_factory=dict)

    def begin(self, run: Run, ended: Position | None, until_us: int) -> None:
        """A new run begins; the one before it ends where it began."""
        while self.runs and self.runs[-1].first >= run.first:  # one that came to nothing, or the same
            self.runs.pop()
        if self.runs and self.runs[-1].last is None and ended is not None:
            self.runs[-1] = replace(self.runs[-1], last=run.first - 1, end=ended, until_us=until_us)
        self.runs.append(run)

    def remove(self, first: int, last: int, before: Position, after: Position) -> None:
        """Slots `first` to `last` are gone. The ones before them end at `before`, those after them begin at `after`."""
        until_us = max((u.complete_until_us for u in self.units if u.last < first), default=0)
        kept: list[Run] = []
        for run in self.runs:
            if (run.last is not None and run.last < first) or run.first > last:
                kept.append(run)
                continue
            if run.first < first:
                kept.append(Run(run.first, run.after, first - 1, before, until_us))
            if run.last is None or run.last > last:
                kept.append(Run(last + 1, after, run.last, run.end, run.until_us))
        self.runs = kept
        self.units = [u for u in self.units if u.last < first or u.first > last]

    def largest(self) -> Iterator[Unit]:
        """The units that no other one contains, in order. O(units)."""
        reached = 0
        for unit in sorted(self.units, key=lambda u: (u.first, -u.last)):
            if unit.last > reached:
                reached = unit.last
                yield unit


@dataclass(slots=True)
class CatalogState:
    """See the module's text.

    Attributes:
        number: of the last entry.
        store_id: of the store whose past this is; None: no store has been seen.
        engine: its engine's name.
        branches: by id (hex), in the order in which they were accepted.
        sessions: begun, and neither whole nor aborted: what `begin` said.
        images: whole and not dropped, by session, in order.
        barred: sessions that were aborted.
        dropped: objects that were dropped, with the number of the entry; forgotten once no session began before it.
        leases, marks: by id, and by name.
        proofs: the newest of each kind for each image.
    """

    number: int = 0
    store_id: bytes | None = None
    engine: str = ""
    branches: dict[str, BranchLog] = field(default_factory=dict)
    sessions: dict[str, Entry] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    barred: set[str] = field(default_factory=set)
    dropped: dict[str, int] = field(default_factory=dict)
    leases: dict[str, Entry] = field(default_factory=dict)
    marks: dict[str, Entry] = field(default_factory=dict)
    proofs: dict[tuple[str, str], Entry] = field(default_factory=dict)

    def apply(self, entry: Entry, where: str) -> None:
        """Take the next entry. `where`: its object, for messages. Raises `Damaged`, `UnsupportedFormat`."""
        try:
            if entry["number"] != self.number + 1:
                raise Damaged(f"says that it is entry {entry['number']}", path=where)
            take = getattr(self, f"_{entry['do']}", None)
            if take is None:
                raise UnsupportedFormat(f"{where} has an entry {entry['do']!r}, which a later release wrote")
            take(entry)
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            raise Damaged(f"lacks or garbles a field: {error}", path=where) from error
        self.number += 1

    @property
    def newest(self) -> Image | None:
        """The image that shows most of the store's past: the last one that was taken, or a synthetic one that was made
        after it, of the same history, and goes as far. One that was made of an earlier point shows nothing new."""
        found: Image | None = None
        for image in self.images.values():
            if found is None or image.synthetic is None or (image.history == found.history
                                                            and image.end.txid >= found.end.txid):
                found = image
        return found

    def bases(self, source: str, made_of: str = "") -> list[Image]:
        """The images in the order in which a new one is best compared with them. A synthetic one: first with what it
        is made of. Others: first with those of the same source, the last one first, then with those of other sources,
        and then with synthetic ones: an engine that replays log may lay out its files in another way than the one that
        it has the log of, so nearly all blocks of another member may differ."""
        return sorted(self.images.values(), reverse=True,
                      key=lambda image: (image.session == made_of, image.synthetic is None, image.source == source,
                                         image.order))

    def _store(self, entry: Entry) -> None:
        self.store_id, self.engine = entry["id"], entry["engine"]

    def _accept(self, entry: Entry) -> None:
        history = History.from_wire(entry["history"])
        self.branches.setdefault(history.branch.id.hex(), BranchLog(history))

    def _begin(self, entry: Entry) -> None:
        self.sessions[entry["session"]] = entry

    def _image(self, entry: Entry) -> None:
        session = entry["session"]
        self.sessions.pop(session, None)
        self.images[session] = Image.from_wire(entry, entry["number"])

    def _abort(self, entry: Entry) -> None:
        self.sessions.pop(entry["session"], None)
        self.barred.add(entry["session"])

    def _run(self, entry: Entry) -> None:
        ended = entry["ended"]
        self.branches[entry["branch"]].begin(Run(entry["slot"], Position(*entry["after"])),
                                             None if ended is None else Position(*ended), entry["until_us"])

    def _merge(self, entry: Entry) -> None:
        log, unit = self.branches[entry["branch"]], Unit.from_wire(entry)
        log.units.append(unit)
        log.reached[unit.level] = unit.last

    def _drop(self, entry: Entry) -> None:
        for session in entry.get("images", ()):
            self.images.pop(session, None)
            self.proofs = {key: proof for key, proof in self.proofs.items() if key[0] != session}
        for name in entry.get("packs", ()):
            self.dropped[name] = entry["number"]
        gone = set(entry.get("merged", ()))
        for branch in self.branches.values() if gone else ():
            branch.units = [unit for unit in branch.units if unit.name not in gone]
        for branch_id, first, last, before, after in entry.get("slots", ()):
            self.branches[branch_id].remove(first, last, Position(*before), Position(*after))
        oldest = min((s["number"] for s in self.sessions.values()), default=entry["number"] + 1)
        self.dropped = {name: number for name, number in self.dropped.items() if number > oldest}

    def _lease(self, entry: Entry) -> None:
        self.leases[entry["id"]] = entry

    def _release(self, entry: Entry) -> None:
        self.leases.pop(entry["id"], None)

    def _mark(self, entry: Entry) -> None:
        self.marks[entry["name"]] = entry

    def _unmark(self, entry: Entry) -> None:
        self.marks.pop(entry["name"], None)

    def _proof(self, entry: Entry) -> None:
        self.proofs[entry["of"], entry["kind"]] = entry

    def to_wire(self) -> Entry:
        """The state as plain values, for a checkpoint."""
        return {
            "number": self.number, "store_id": self.store_id, "engine": self.engine,
            "branches": [[b.history.to_wire(),
                          [[r.first, list(r.after), r.last, r.end and list(r.end), r.until_us] for r in b.runs],
                          [u.to_wire() for u in b.units], list(b.reached.items())]
                         for b in self.branches.values()],
            "sessions": list(self.sessions.values()),
            "images": [[image.order, image.to_wire()] for image in self.images.values()],
            "barred": sorted(self.barred), "dropped": list(self.dropped.items()),
            "leases": list(self.leases.values()), "marks": list(self.marks.values()),
            "proofs": list(self.proofs.values()),
        }

    @classmethod
    def from_wire(cls, body: Mapping[str, Any], where: str) -> CatalogState:
        """Raises `Damaged`."""
        try:
            state = cls(body["number"], body["store_id"], body["engine"], barred=set(body["barred"]),
                        dropped=dict(body["dropped"]))
            for history, runs, units, reached in body["branches"]:
                log = BranchLog(History.from_wire(history), reached=dict(reached),
                                units=[Unit.from_wire(u) for u in units])
                log.runs = [Run(first, Position(*after), last, None if end is None else Position(*end), until)
                            for first, after, last, end, until in runs]
                state.branches[log.history.branch.id.hex()] = log
            state.sessions = {entry["session"]: entry for entry in body["sessions"]}
            state.images = {image["session"]: Image.from_wire(image, order) for order, image in body["images"]}
            state.leases = {entry["id"]: entry for entry in body["leases"]}
            state.marks = {entry["name"]: entry for entry in body["marks"]}
            state.proofs = {(entry["of"], entry["kind"]): entry for entry in body["proofs"]}
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            raise Damaged(f"lacks or garbles a field: {error}", path=where) from error
        return state
