"""What the operations on a repository report: words by `str()`, one JSON object by `to_json()`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..report import Bounds, Told, iso, size_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport(Told):
    """What one backup into a repository did.

    Attributes:
        image: the image's id. base: that of the image it was compared with, or "".
        image_bytes: of the image's files. new_bytes: what was stored for it, compressed, log not counted.
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
    new_bytes: int
    log_bytes: int
    complete_until_us: int
    seconds: float

    def __str__(self) -> str:
        rate = f", {size_of(int(self.image_bytes / self.seconds))}/s" if self.image_bytes > 10_000_000 else ""
        return (f"image {self.image[:8]} of store {self.store_id[:8]} ({self.engine}) in {self.repository}: "
                f"{size_of(self.image_bytes)} in {self.seconds:.2f} s{rate}, stored as {size_of(self.new_bytes)}\n"
                f"  {'compared with image ' + self.base[:8] if self.base else 'nothing to compare with'}\n"
                f"  restores to transaction {self.consistent_from} to {self.to_txid} by itself (complete up to "
                f"{iso(self.complete_until_us)})")


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
    """An image. `proofs`: the newest verify and the newest rehearsal of it."""

    id: str
    branch: str
    created_us: int
    consistent_from: int
    to_txid: int
    image_bytes: int
    new_bytes: int
    proofs: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryInfo(Told):
    """What a repository is.

    Attributes:
        store_id, engine: of the store whose past it holds; "" before the first backup.
        image_bytes: of the files of all images. stored_bytes: what is stored for them, after comparing and compressing.
        running: backups that have begun and are not whole: who and since when.
        marks: restore points with a name. leases: restores that are running.
    """

    repository: str
    id: str
    encrypted: bool
    store_id: str
    engine: str
    branches: tuple[BranchInfo, ...]
    images: tuple[ImageInfo, ...]
    image_bytes: int
    stored_bytes: int
    marks: tuple[dict[str, Any], ...]
    leases: tuple[dict[str, Any], ...]
    running: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        lines = [f"{self.repository} is a repository{', encrypted' if self.encrypted else ''}"]
        if not self.store_id:
            return f"{lines[0]}; nothing was backed up into it yet"
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
                         f"{image.to_txid}, {size_of(image.image_bytes)}, stored as {size_of(image.new_bytes)}"
                         f"{''.join(', ' + _proof(proof) for proof in image.proofs)}")
        lines.append(f"on disk  {size_of(self.image_bytes)} of images, stored as {size_of(self.stored_bytes)}")
        lines += [f"mark     {mark['name']}: transaction {mark['txid']}{', kept' if mark['keep'] else ''}"
                  for mark in self.marks]
        lines += [f"restore  running since {iso(lease['time_us'])}: {lease['who']}" for lease in self.leases]
        lines += [f"backup   running since {iso(one['time_us'])}: {one['who']}" for one in self.running]
        return "\n  ".join(lines)


def _proof(proof: dict[str, Any]) -> str:
    what = "rehearsed" if proof["kind"] == "rehearsal" else "verified"
    return f"{what}{'' if proof['good'] else ' AND FOUND BAD'} {iso(proof['time_us'])}"


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
class RepositoryVerified(Told):
    """What a verify read: every object that an image or the archived log needs, or a share of the blocks.

    Attributes:
        images, packs, blocks, pieces: how many were read. bytes: of their content.
        damaged: what is wrong, each a sentence that names the object.
        bad_images: the images that cannot be restored because of it, by id.
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
        return "\n  ".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal(Told):
    """A restore into a scratch place, which was opened and checked.

    Attributes:
        txid: the transaction that was restored. digest: of the content there, by a full walk.
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
    seconds: float
    check_seconds: float

    def __str__(self) -> str:
        return (f"restores, in {self.seconds:.2f} s, to transaction {self.txid}: image {self.image[:8]} and "
                f"{self.transactions:,} transactions of log; opened and found consistent ({self.check_seconds:.2f} s)\n"
                f"  digest of the content: {self.digest}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired(Told):
    """What an expiry removed, or would remove (`dry_run`).

    Attributes:
        kept: ids of the images that stay, each with the reasons.
        images: ids of those that go. slots: archived log that goes: branch, first and last transaction.
        objects, bytes: that were deleted, as the list of the repository said.
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
    damaged: tuple[str, ...] = ()

    def __str__(self) -> str:
        would = "would be " if self.dry_run else ""
        lines = [f"{self.objects:,} objects, {size_of(self.bytes)}, {would}deleted from {self.repository}"]
        lines += [f"kept     image {image[:8]}: {why}" for image, why in self.kept.items()]
        lines += [f"dropped  image {image[:8]}" for image in self.images]
        lines += [f"dropped  log of branch {branch[:8]}, transaction {first} to {last}"
                  for branch, first, last in self.log]
        lines += [f"given up {who}" for who in self.aborted]
        lines += [f"damaged  {what}" for what in self.damaged]
        return "\n  ".join(lines)
