"""The reports of backup, verify, restore and info: words by `str()`, one JSON object by `to_json()`.

Times are microseconds since the Unix epoch in fields, and ISO 8601 in UTC in words and JSON.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..engine.renamed import attribute


def iso(time_us: int) -> str:
    """
     iso(0), iso(1 << 60)
    ('1970-01-01T00:00:00.000000Z', '1152921504606846976 microseconds after 1970')
    """
    seconds, micros = divmod(time_us, 1_000_000)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06d}Z"
    except (ValueError, OverflowError):  # beyond the years of Python's calendar
        return f"{time_us} microseconds after 1970"


def size_of(count: int) -> str:
    """
    >>> size_of(999), size_of(1500), size_of(2_340_000_000)
    ('999 bytes', '1.5 kB', '2.3 GB')
    """
    if count < 1000:
        return f"{count} bytes"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value:.1f} TB"


def _plain(value: Any, name: str = "") -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name.removesuffix("_us"): _plain(getattr(value, f.name), f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k.removesuffix("_us"): _plain(v, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if name.endswith("_us") and isinstance(value, int):
        return iso(value)
    return value.hex() if isinstance(value, bytes) else value


def spans(pairs: Iterable[tuple[int, int]]) -> str:
    """
    >>> spans([(1, 4), (7, 7)])
    '1 to 4, 7'
    """
    return ", ".join(f"{first} to {last}" if first != last else str(first) for first, last in pairs)


class Told:
    """Base of the reports."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; times as ISO 8601 text, ids as hex."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def to_json(self) -> str:
        """One JSON object, on one line."""
        return json.dumps(self.to_dict())


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds(Told):
    """The points a backup can be restored to: every transaction from `first` to `last`.

    Attributes:
        first, last: txids.
        first_time_us: the earliest time that can be restored to. None if it is not known; then the earliest known is
            the time of the first transaction after `first`.
        last_time_us: commit time of `last`; None if it is not known.
        complete_until_us: the latest time that can be restored to: no transaction committed up to it is missing.
        gaps: pairs of first and last: transactions in between that the backup cannot be restored to.
    """

    first: int
    last: int
    first_time_us: int | None
    last_time_us: int | None
    complete_until_us: int
    gaps: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        since = f" ({iso(self.first_time_us)})" if self.first_time_us else ""
        but = f", but not to {spans(self.gaps)}" if self.gaps else ""
        return f"transaction {self.first}{since} to {self.last}{but} (complete up to {iso(self.complete_until_us)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Told):
    """What one backup run did.

    Attributes:
        kind: full or incremental.
        why: if a full backup replaced an existing one, what made it necessary. Empty otherwise.
        target, target_id, store_id, branch, engine: what was backed up, and where to.
        from_txid, to_txid: transactions after the first, up to the second, are new in the target. A full starts at 0.
        image_bytes, log_bytes, transactions: what was fetched.
        resumed_bytes: how many of `image_bytes` an earlier run had copied.
        started_us, ended_us, seconds: when, and how long.
        bounds: what the target can be restored to now.
        verified: whether the copy was replayed and checked in this run.
        compacted: whether log that is older than the points to be kept was compacted into a new image.
        dropped: pairs of first and last: transactions that could be restored to before the run, and cannot any more.
        lost: whether restore points are gone that `keep_points` did not allow to go: there is a new gap that was not
            asked for, what was there is damaged, or none were to be kept. The command line has an exit code for it.
        notes: what else you should know, each a sentence.
    """

    kind: str
    why: str = ""
    target: str
    target_id: str
    store_id: str
    branch: str
    engine: str
    from_txid: int
    to_txid: int
    image_bytes: int = 0
    resumed_bytes: int = 0
    log_bytes: int = 0
    transactions: int = 0
    started_us: int
    ended_us: int
    seconds: float
    bounds: Bounds
    verified: bool = False
    compacted: bool = False
    folded = attribute("folded", "compacted")
    dropped: tuple[tuple[int, int], ...] = ()
    lost: bool = False
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        if self.kind == "full":
            moved = f"{size_of(self.image_bytes)} of image and {self.transactions:,} transactions of log"
        else:
            moved = f"{self.transactions:,} transactions ({size_of(self.log_bytes)})"
        came = self.image_bytes - self.resumed_bytes + self.log_bytes
        rate = f", {size_of(int(came / self.seconds))}/s" if came > 10_000_000 and self.seconds else ""
        lines = [f"{self.kind} backup of store {self.store_id[:8]} ({self.engine}) in {self.target}: {moved} "
                 f"in {self.seconds:.2f} s{rate}"]
        if self.why:
            lines.append(f"a full one because {self.why}")
        if self.resumed_bytes:
            lines.append(f"went on with an earlier run, which had brought {size_of(self.resumed_bytes)}")
        lines.append(f"restores to {self.bounds}")
        if self.kind == "full":
            lines.append("checked: replayed, and found consistent" if self.verified else "not checked")
        if self.compacted:
            lines.append("compacted older log into the image")
        if self.dropped:
            lines.append(f"no longer restores to transaction {spans(self.dropped)}")
        return "\n  ".join([*lines, *self.notes])


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport(Told):
    """What `verify` found good: every byte, and the state that comes of it.

    Attributes:
        image_bytes, log_bytes, attachment_bytes, transactions: what was read.
        digest: of the state at the end of the log, by a full walk.
        notes: what else you should know, each a sentence.
    """

    target: str
    store_id: str
    branch: str
    engine: str
    bounds: Bounds
    image_bytes: int
    log_bytes: int
    attachment_bytes: int
    transactions: int
    digest: str
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        read = size_of(self.image_bytes + self.log_bytes + self.attachment_bytes)
        lines = [f"{self.target} is whole: {read} match their checksums; replayed to transaction {self.bounds.last} in "
                 f"a scratch place and found consistent ({self.seconds:.2f} s)", f"restores to {self.bounds}",
                 f"digest of the content at transaction {self.bounds.last}: {self.digest}"]
        return "\n  ".join([*lines, *self.notes])


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport(Told):
    """What `restore` made.

    Attributes:
        txid, time_us: the restore point, and its commit time; None if that is not known.
        branch: the new branch that the restored store is on.
        transactions: how many were replayed.
        written_bytes: how many of the image's bytes were written, if only those that differed were; else None.
    """

    source: str
    destination: str
    store_id: str
    branch: str
    engine: str
    txid: int
    time_us: int | None
    image_bytes: int
    transactions: int
    seconds: float
    written_bytes: int | None = None

    def __str__(self) -> str:
        when = f", committed {iso(self.time_us)}," if self.time_us is not None else ""
        image = size_of(self.image_bytes) + ("" if self.written_bytes is None else
                                             f" (of which {size_of(self.written_bytes)} differed)")
        return (f"restored {self.destination} to transaction {self.txid}{when} in {self.seconds:.2f} s: "
                f"{image} of image and {self.transactions:,} transactions replayed\n"
                f"  it is on a new branch, {self.branch[:8]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Info(Told):
    """What a directory is.

    Attributes:
        kind: `store`, `backup`, or `promoted backup` (a backup that was opened for writing later).
        branches: from the first to the current one: id, and the transaction after which it began.
        generation: the one in force.
        image_first, image_last: between which transactions a backup's image was copied; None for a store.
        moving: whether a backup's image moved while it was copied.
        bounds: what a backup restores to; for a store or promoted backup, what its log holds.
        image_bytes, log_bytes: on disk, of the generation in force.
        older: the older generations that a backup keeps, each with what it restores to.
        log_clean: whether the log's last segment is sealed.
        runs: the runs of a backup, oldest first.
        promoted_us: when a backup was opened for writing.
        times_since: before this transaction the clock was ahead, so earlier transactions may have later commit times;
            None: all times are in order.
        clock_behind: seconds by which this machine's clock is behind the log's last time. One of the two is wrong.
        clock_doubted: seconds by which the open store thinks that the clock is ahead; meanwhile it deletes nothing for
            its age. None: the store is not open, or that cannot be known.
        slots: for whom the log is kept, the one that is farthest behind first: id, name, the transaction that it has,
            when it registered last, and the bytes of log after that. An archive's name is `archive in URL`.
    """

    kind: str
    path: str
    store_id: str
    engine: str
    created_us: int
    branches: tuple[dict[str, Any], ...]
    generation: str
    bounds: Bounds
    image_bytes: int
    log_bytes: int
    log_clean: bool
    segments: int
    target_id: str | None = None
    image_first: int | None = None
    image_last: int | None = None
    moving: bool | None = None
    runs: tuple[dict[str, Any], ...] = ()
    older: tuple[dict[str, Any], ...] = ()
    promoted_us: int | None = None
    retired_us = attribute("retired_us", "promoted_us")
    times_since: int | None = None
    clock_behind: float = 0.0
    clock_doubted: int | None = None
    slots: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path} is a {self.kind} of the {self.engine} engine",
                 f"store    {self.store_id}",
                 *(f"branch   {b['id']}, from transaction {b['from_txid']}" for b in self.branches),
                 f"created  {iso(self.created_us)}"]
        if self.kind == "backup":
            lines.append(f"restores to {self.bounds}")
        else:
            some = f"transaction {self.bounds.first + 1} to {self.bounds.last}"
            lines.append(f"log      {some if self.bounds.first < self.bounds.last else 'no transaction'}")
        if self.times_since is not None:
            lines.append(f"clock    was ahead, and right again from transaction {self.times_since} on; a time means "
                         "one of those, unless it is before them all")
        if self.clock_behind > 60:
            lines.append(f"clock    is {self.clock_behind / 3600:,.1f} hours behind the log's last time: it is wrong "
                         "now, or was then")
        if self.clock_doubted:
            lines.append(f"clock    is doubted by the process that has it open: it is {self.clock_doubted / 3600:,.1f} "
                         "hours ahead of what was known of the time. For an hour nothing is deleted for its age")
        lines.append(f"on disk  {size_of(self.image_bytes)} of state, {size_of(self.log_bytes)} of log in "
                     f"{self.segments} segments ({self.generation})")
        lines += [f"kept     {one['generation']}, for transaction {one['first']} to {one['last']}"
                  f"{', damaged: ' + one['damage'] if one['damage'] else ''}" for one in self.older]
        lines += [f"slot     {one['name']}: has up to transaction {one['txid']}, at {iso(one['seen_us'])}; "
                  f"{size_of(one['held_bytes'])} of log are kept for it" for one in self.slots]
        if self.promoted_us is not None:
            lines.append(f"opened for writing at {iso(self.promoted_us)}: no longer a backup")
        shown = self.runs[-10:]
        if len(shown) < len(self.runs):
            lines.append(f"runs     {len(self.runs)}, the last {len(shown)} of them:")
        lines += [f"run      {iso(r['ended_us'])}  {r['kind']}, to transaction {r['to']}"
                  f"{', because ' + r['why'] if r.get('why') else ''}" for r in shown]
        return "\n  ".join(lines)
