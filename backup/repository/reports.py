"""What the operations on a repository report: words by `str()`, one JSON object by `to_json()`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..report import Bounds, Told, iso, size_of
from .storage.probe import Probed


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport(Told):
    """What one backup into a repository did.

    Attributes:
        image: the image's id. base: that of the image it was compared with, or "".
        digest: of the content at transaction `digest_at`, with which rehearsals are compared; "" if there is none.
        synthetic: whether it was made in the repository, of the image `base` and archived log.
        image_bytes: of the image's files. content_bytes: of the blocks that had to be stored for it, which is what is
            left after comparing; with their lists. new_bytes: what they take as stored, compressed. Log is not counted.
        log_bytes: stored of the log that makes it whole.
        consistent_from, to_txid: it restores by itself to any transaction between the two.
    """

    repository: str
    image: str
    base: str
    store_id: str
    branch: str
    engine: str
    consistent_from: int
    to_txid: int
    image_bytes: int
    content_bytes: int
    new_bytes: int
    log_bytes: int
    complete_until_us: int
    seconds: float
    synthetic: bool = False
    digest: str = ""
    digest_at: int = 0

    def __str__(self) -> str:
        rate = f", {size_of(int(self.image_bytes / self.seconds))}/s" if self.image_bytes > 10_000_000 else ""
        base = "nothing to compare with, so all of it was sent" if not self.base else (
            f"{'made of' if self.synthetic else 'compared with'} image {self.base[:8]}"
            f"{' and archived log' if self.synthetic else ''}")
        return (f"image {self.image[:8]} of store {self.store_id[:8]} ({self.engine}) in {self.repository}: "
                f"{size_of(self.image_bytes)} in {self.seconds:.2f} s{rate}, of which "
                f"{size_of(self.content_bytes)} were new, stored as {size_of(self.new_bytes)}\n"
                f"  {base}\n"
                f"  restores to transaction {self.consistent_from} to {self.to_txid} by itself (complete up to "
                f"{iso(self.complete_until_us)})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights(Told):
    """What credentials may do beside what a backup needs, as it was tried with a small object.

    Attributes:
        append_only: they can only add. None: it is not known.
        overwrite, delete: whether an object can be put over another, and deleted. None: it is not known. Whether a
            bucket keeps versions of what was overwritten or deleted is not seen.
    """

    append_only: bool | None
    overwrite: bool | None
    delete: bool | None

    @classmethod
    def of(cls, probed: Probed) -> Rights:
        """What a probe found."""
        tried = probed.replaced, probed.removed
        return cls(append_only=False if True in tried else None if None in tried else True,
                   overwrite=probed.replaced, delete=probed.removed)

    def __str__(self) -> str:
        if self.append_only:
            return "these credentials can only add to it (append-only)"
        can = [what for what, may in (("overwrite", self.overwrite), ("delete", self.delete)) if may]
        return (f"these credentials can {' and '.join(can)} what is there: they are not append-only" if can else
                "whether these credentials are append-only is not known")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupPlan(Told):
    """What a backup would do (`dry_run`), after all that can be known before it was tried.

    Attributes:
        base: id of the image that it would be compared with; "": there is none, so all of it would be sent.
        image_bytes: that the source would read.
        room: bytes that can still be stored; None: no bound is known.
        clock_ahead: seconds by which the storage's clock is ahead of this machine's.
        rights: of the credentials.
    """

    repository: str
    base: str
    store_id: str
    branch: str
    engine: str
    image_bytes: int
    room: int | None
    clock_ahead: float
    rights: Rights

    def __str__(self) -> str:
        how = (f"compare them with image {self.base[:8]}, and send what differs" if self.base else
               "send all of them: there is no image to compare with")
        room = "" if self.room is None else f", which has room for {size_of(self.room)}"
        return (f"would read {size_of(self.image_bytes)} of store {self.store_id[:8]} ({self.engine}), branch "
                f"{self.branch[:8]}, and {how}\n"
                f"  to {self.repository}{room}; {self.rights}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchInfo(Told):
    """A branch: the points it restores to, and how far its log is archived (None: not at all; a time
    of 0 is not known). `current`: it is the one
    that is meant if none is named."""

    id: str
    from_txid: int
    restores_to: tuple[Bounds, ...]
    archived_to: int | None
    archived_until_us: int | None
    current: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo(Told):
    """An image. `image_bytes`, `content_bytes`, `new_bytes`: as in `ImageReport`. `proofs`: the newest verify and the
    newest rehearsal of it, each with why it is `stale`, or "". `made_of`: if it is synthetic, id of the image that it
    was made of; else ""."""

    id: str
    branch: str
    created_us: int
    consistent_from: int
    to_txid: int
    image_bytes: int
    content_bytes: int
    new_bytes: int
    proofs: tuple[dict[str, Any], ...]
    made_of: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryInfo(Told):
    """What a repository is.

    Attributes:
        store_id, engine: of the store whose past it holds; "" before the first backup.
        image_bytes: of the files of all images. content_bytes: of the blocks that had to be stored for them, before
            compressing. What they share with images that were dropped since is not counted.
        stored_bytes: of all packs, compressed, with what images that were dropped and runs that died left.
        running: backups that have begun and are not whole: who and since when.
        marks: restore points with a name. leases: restores that are running.
        rights: of the credentials, if it was asked for.
        salvaged: the catalog was not read, so of marks, proofs and what is running nothing is known. left_out: what
            was found then and does not count, each a sentence.
    """

    repository: str
    id: str
    encrypted: bool
    store_id: str
    engine: str
    branches: tuple[BranchInfo, ...]
    images: tuple[ImageInfo, ...]
    image_bytes: int
    content_bytes: int
    stored_bytes: int
    marks: tuple[dict[str, Any], ...]
    leases: tuple[dict[str, Any], ...]
    running: tuple[dict[str, Any], ...]
    rights: Rights | None = None
    salvaged: bool = False
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.repository} is a repository{', encrypted' if self.encrypted else ''}"]
        if self.salvaged:
            lines[0] += ", read without its catalog: marks and proofs are not known, and what was dropped may show"
        if not self.store_id:
            lines[0] += "; nothing was backed up into it yet"
        if self.rights is not None:
            lines.append(f"rights   {self.rights}")
        if not self.store_id:
            return "\n  ".join(lines)
        lines.append(f"store    {self.store_id} ({self.engine})")
        for branch in self.branches:
            lines.append(f"branch   {branch.id}, from transaction {branch.from_txid}"
                         f"{' (current)' if branch.current and len(self.branches) > 1 else ''}")
            lines += [f"  restores to {bounds}" for bounds in branch.restores_to] or ["  restores to nothing"]
            if branch.archived_to is not None:
                until = f" ({iso(branch.archived_until_us)})" if branch.archived_until_us else ""
                lines.append(f"  log archived to transaction {branch.archived_to}{until}")
        for image in self.images:
            lines.append(f"image    {image.id[:8]}  {iso(image.created_us)}  transaction {image.consistent_from} to "
                         f"{image.to_txid}, {size_of(image.image_bytes)}, {size_of(image.content_bytes)} new, "
                         f"stored as {size_of(image.new_bytes)}"
                         f"{', made of image ' + image.made_of[:8] if image.made_of else ''}"
                         f"{''.join(', ' + _proof(proof) for proof in image.proofs)}")
        lines.append(f"bytes    {size_of(self.image_bytes)} of images, {size_of(self.content_bytes)} new when they "
                     f"were taken; {size_of(self.stored_bytes)} are stored, compressed")
        lines += [f"mark     {mark['name']}: transaction {mark['txid']}{', kept' if mark['keep'] else ''}"
                  for mark in self.marks]
        lines += [f"restore  running since {iso(lease['time_us'])}: {lease['who']}" for lease in self.leases]
        lines += [f"backup   running since {iso(one['time_us'])}: {one['who']}" for one in self.running]
        lines += [f"left out {one}" for one in self.left_out]
        return "\n  ".join(lines)


def _proof(proof: dict[str, Any]) -> str:
    what = "rehearsed" if proof["kind"] == "rehearsal" else "verified"
    outdated = f" (not true any more: {proof['stale']})" if proof["stale"] else ""
    return f"{what}{'' if proof['good'] else ' AND FOUND BAD'} {iso(proof['time_us'])}{outdated}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan(Told):
    """What a restore would do (`dry_run`)."""

    image: str
    branch: str
    txid: int | None
    at_us: int | None
    image_bytes: int
    log_from: int
    log_to: int
    restores_to: tuple[Bounds, ...]

    def __str__(self) -> str:
        to = f"transaction {self.txid}" if self.at_us is None else f"the last transaction up to {iso(self.at_us)}"
        return (f"would restore to {to} of branch {self.branch[:8]}: image {self.image[:8]}, "
                f"{size_of(self.image_bytes)}, and log after transaction {self.log_from} up to at most {self.log_to}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawReport(Told):
    """What a restore without the engine wrote: a backup in a directory.

    Attributes:
        branch: the one that the log ends on. image: the image's id.
        engine, state_format: what a store can be made of it with.
        bounds: the points that it restores to.
        transactions: of the log that was written.
    """

    source: str
    destination: str
    store_id: str
    branch: str
    engine: str
    state_format: int
    image: str
    bounds: Bounds
    image_bytes: int
    transactions: int
    seconds: float

    def __str__(self) -> str:
        return (f"wrote image {self.image[:8]} ({size_of(self.image_bytes)}) and {self.transactions:,} transactions of "
                f"log to {self.destination}, in {self.seconds:.2f} s\n"
                f"  it is a backup of store {self.store_id} and restores to {self.bounds}\n"
                f"  with the {self.engine} engine, state format {self.state_format}: holdfast restore "
                f"{self.destination} STORE")


@dataclass(frozen=True, slots=True, kw_only=True)
class LostPoints(Told):
    """Transactions `first` to `last` of a branch, to which nothing restores because something is damaged. `last`: None
    if the damage is where the archived log ends, so that nobody knows how far it went."""

    branch: str
    first: int
    last: int | None

    def __str__(self) -> str:
        to = "on, as far as it went" if self.last is None else f"to {self.last}"
        return f"transaction {self.first} {to}, of branch {self.branch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryVerified(Told):
    """What a verify read: every object that an image or the archived log needs, or a share of the blocks.

    Attributes:
        images, packs, blocks, pieces: how many were read. bytes: of their content.
        damaged: what is wrong, each a sentence that names the object.
        bad_images: the images that cannot be restored because of it, by id.
        lost: the restore points that it costs, of each branch. A restore to any other one reads nothing of what is
            known to be damaged.
    """

    repository: str
    images: int
    packs: int
    blocks: int
    pieces: int
    bytes: int
    sample: float
    damaged: tuple[str, ...]
    bad_images: tuple[str, ...]
    lost: tuple[LostPoints, ...]
    seconds: float

    def __str__(self) -> str:
        share = "" if self.sample == 1 else f" ({100 * self.sample:g} % of the blocks, drawn at random)"
        read = (f"{self.images} images, {self.blocks:,} blocks in {self.packs:,} packs, {self.pieces:,} pieces of log, "
                f"{size_of(self.bytes)}{share}, in {self.seconds:.2f} s")
        if not self.damaged:
            return f"{self.repository} is whole: {read}"
        lines = [f"{self.repository} is damaged: {read}", *self.damaged]
        if self.bad_images:
            lines.append(f"images that do not restore: {', '.join(image[:8] for image in self.bad_images)}")
        lines += [f"lost     {points}" for points in self.lost]
        if not self.lost:
            lines.append("every point restores all the same")
        return "\n  ".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal(Told):
    """A restore into a scratch place, which was opened and checked.

    Attributes:
        txid: the transaction that was restored. digest: of the content there, by a full walk.
        compared: whether a digest was compared with the one that was noted when the image was made. compared_at: at
            which transaction, which the restore passed or ended at; 0 if at none. digest_from: who had computed it:
            `source`, or `repository` if the image is synthetic; "" if there is none.
        seconds: what the restore took, without the check. check_seconds: what check and digest took.
    """

    repository: str
    image: str
    branch: str
    engine: str
    txid: int
    time_us: int | None
    image_bytes: int
    transactions: int
    digest: str
    compared: bool
    compared_at: int
    digest_from: str
    seconds: float
    check_seconds: float

    def __str__(self) -> str:
        return (f"restores, in {self.seconds:.2f} s, to transaction {self.txid}: image {self.image[:8]} and "
                f"{self.transactions:,} transactions of log; opened and found consistent ({self.check_seconds:.2f} s)\n"
                f"  digest of the content: {self.digest}, {self._equal()}")

    def _equal(self) -> str:
        if not self.compared:
            return "and none to compare with"
        whose = "the source's" if self.digest_from == "source" else "that of when the image was made"
        return f"equal to {whose}" if self.compared_at == self.txid else (
            f"not compared; at transaction {self.compared_at} it was equal to {whose}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired(Told):
    """What an expiry removed, or would remove (`dry_run`).

    Attributes:
        kept: ids of the images that stay, each with the reasons.
        images: ids of those that go. slots: archived log that goes: branch, first and last transaction.
        objects, bytes: that were deleted, as the list of the repository said.
        marks: by the name of each mark with `keep`, the bytes that are kept for it alone.
        aborted: runs that were given up for dead.
        damaged: what was found damaged on the way, each a sentence that names the object. If it is the root of an image
            that is kept, no pack is deleted, since nobody knows which of them it uses.
    """

    repository: str
    dry_run: bool
    kept: dict[str, str]
    images: tuple[str, ...]
    log: tuple[tuple[str, int, int], ...]
    objects: int
    bytes: int
    aborted: tuple[str, ...]
    marks: dict[str, int] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()

    def __str__(self) -> str:
        would = "would be " if self.dry_run else ""
        lines = [f"{self.objects:,} objects, {size_of(self.bytes)}, {would}deleted from {self.repository}"]
        lines += [f"kept     image {image[:8]}: {why}" for image, why in self.kept.items()]
        lines += [f"dropped  image {image[:8]}" for image in self.images]
        lines += [f"dropped  log of branch {branch[:8]}, transaction {first} to {last}"
                  for branch, first, last in self.log]
        lines += [f"mark     {name}: {size_of(size)} are kept for it alone" for name, size in self.marks.items()]
        lines += [f"given up {who}" for who in self.aborted]
        lines += [f"damaged  {what}" for what in self.damaged]
        return "\n  ".join(lines)
