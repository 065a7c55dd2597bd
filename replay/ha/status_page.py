"""The status page of a member: one HTML page without scripts or outside resources, which refreshes itself.

On a narrow screen each row of a table is a block of its own, and each cell says what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from ...engine.wal.slots import Slot
from .document import ClusterDocument
from .lag import Lag

REFRESH_S = 3
MOST_CHANGES = 10
"""How many changes of primary are shown."""
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#777;--bad:#c22;--good:#2a7}
@media(prefers-color-scheme:dark){:root{--soft:#999;--bad:#f77;--good:#4c9}}
body{font:16px/1.5 system-ui,sans-serif;margin:1.5em auto;max-width:58em;padding:0 1em;overflow-wrap:anywhere}
h1{font-size:1.5em;margin:0}h2{font-size:1.1em;margin:1.8em 0 .3em}p{margin:.4em 0}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.4em 1em .4em 0;border-bottom:1px solid var(--line)}
th,.soft{color:var(--soft);font-weight:normal}
.soft{white-space:nowrap}.bad{color:var(--bad)}
.primary td:first-child,.primary td:nth-child(2){font-weight:bold;color:var(--good)}
@media(max-width:40em){table,tbody,tr,td{display:block}th{display:none}
tr{border-bottom:1px solid var(--line);padding:.5em 0}
td{border:0;padding:0 0 0 6.5em;text-indent:-6.5em}td:empty{display:none}
td::before{content:attr(data-is);display:inline-block;width:6.5em;text-indent:0;color:var(--soft);font-weight:normal}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a member knows besides the document.

    Attributes:
        name, role, trouble: of this member.
        published: the last transaction that it shows.
        behind: how many transactions it knows to be published and does not show; None if it has not heard from a
            primary in this epoch.
        heard_s: seconds since it heard from the primary; None if it is that.
        connected: it streams from a primary.
        lags: of the other members, measured on the primary.
        slots: of the backups that have registered.
        now_us: the time.
    """

    name: str
    role: str
    trouble: str | None
    published: int
    behind: int | None
    heard_s: float | None
    connected: bool
    lags: Mapping[str, Lag]
    slots: Sequence[Slot]
    now_us: int


def waiting_page(cluster: str, name: str, waits_for: str | None, failure: str | None) -> bytes:
    """Of a member that has no store yet, because it waits for something."""
    body = f"<p><b>{escape(name)}</b> is joining."
    if failure is not None:
        body += f"<p class=bad>It cannot go on: {escape(failure)}"
    elif waits_for is not None:
        body += f"<p class=bad>It waits for {escape(waits_for)}."
    return _page(f"Holdfast cluster {cluster}", body)


def status_page(document: ClusterDocument | None, seen: Seen) -> bytes:
    """What a member knows of its cluster. O(members + slots)."""
    body = [f"<p><b>{escape(seen.name)}</b> is {escape(seen.role)}. It shows everything up to transaction "
            f"{seen.published:,}."]
    if seen.heard_s is not None:
        if seen.behind is None:
            body.append("<p class=bad>It has not heard from a primary in this epoch.")
        else:
            lacks = f"{_count(seen.behind, 'transaction')} less than" if seen.behind else "all that"
            body.append(f"<p>That is {lacks} the primary had published when it was last heard, "
                        f"{_span(seen.heard_s)} ago.")
        if not seen.connected:
            body.append("<p class=bad>It follows nobody now.")
    if seen.trouble is not None:
        body.append(f"<p class=bad>{escape(seen.trouble)}")
    if document is None:
        return _page("Holdfast", "".join(body))
    body.append(f"<p>Epoch {document.epoch:,}, floor {escape(str(document.floor))}, lease {document.ttl:g} s"
                f"{', fail-safe mode allowed' if document.failsafe else ''}."
                f"{' <b class=bad>Paused: nobody is promoted by itself.</b>' if document.paused else ''}"
                f"{' The voters are being changed.' if document.joint is not None else ''}")
    body += ["<h2>Members</h2>", _members(document, seen)]
    body += ["<h2>Backups</h2>", _backups(seen)]
    changes = [_row(_when(f.at_us, seen.now_us), f"{f.epoch:,}", escape(f.leader), escape(f.reason), of=_CHANGES)
               for f in reversed(document.failovers[-MOST_CHANGES:])]
    body += ["<h2>Changes of primary</h2>", _table(_CHANGES, changes)]
    return _page(f"Holdfast cluster {document.cluster}", "".join(body))


_MEMBERS = ("name", "part", "lag", "address")
_BACKUPS = ("last run", "up to", "backup")
_CHANGES = ("when", "epoch", "primary", "why")


def _members(document: ClusterDocument, seen: Seen) -> str:
    rows = []
    for name, entry in sorted(document.members.items()):
        leads = name == document.leader
        part = "voter" if name in document.electorate else "does not vote"
        if leads:
            part = seen.role if name == seen.name else "primary"
        if entry.delay:
            part += f", shows {_span(entry.delay)} late"
        rows.append(_row(escape(name), part, "" if leads else _lag(seen.lags.get(name), document.ttl),
                         escape(entry.address), of=_MEMBERS, kind=" class=primary" if leads else ""))
    return _table(_MEMBERS, rows)


def _lag(lag: Lag | None, ttl: float) -> str:
    if lag is None:
        return "<span class=bad>not heard in this epoch</span>"
    said = "none" if not lag.transactions else (
        f"{_count(lag.transactions, 'transaction')}, {_size(lag.bytes)}, {_span(lag.seconds)}")
    return said if lag.silent < ttl else f"{said}, <span class=bad>silent for {_span(lag.silent)}</span>"


def _backups(seen: Seen) -> str:
    if not seen.slots:
        return "<p>None has registered here."
    newest = sorted(seen.slots, key=lambda slot: -slot.seen_us)
    rows = [_row(_when(slot.seen_us, seen.now_us), _upto(slot.position.txid, seen.published), escape(slot.name),
                 of=_BACKUPS) for slot in newest]
    return _table(_BACKUPS, rows)


def _upto(txid: int, published: int) -> str:
    behind = f", {published - txid:,} since" if published > txid else ""
    return f"transaction {txid:,}{behind}"


def _page(title: str, body: str) -> bytes:
    return (f"<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content={REFRESH_S}>"
            "<meta name=viewport content='width=device-width,initial-scale=1'>"
            f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>{body}\n").encode()


def _table(columns: Iterable[str], rows: Iterable[str]) -> str:
    return f"<table><tr>{''.join(f'<th>{name}' for name in columns)}{''.join(rows)}</table>"


def _row(*cells: str, of: Sequence[str], kind: str = "") -> str:
    return f"<tr{kind}>" + "".join(f"<td data-is='{name}'>{cell}" for name, cell in zip(of, cells, strict=True))


def _when(time_us: int, now_us: int) -> str:
    """A time, and how long ago that was."""
    at = datetime.fromtimestamp(time_us / 1e6, UTC)
    return f"{at:%Y-%m-%d %H:%M:%S} UTC <span class=soft>{_span(max(0, now_us - time_us) / 1e6)} ago</span>"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 10 else f"{size:.1f} {unit}"


def _span(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:,.0f} s"
