"""The status page of a member: one HTML page without scripts or outside resources, which refreshes itself."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape

from .member import StateMachine

REFRESH_S = 3
_STYLE = ("body{font:16px/1.5 system-ui,sans-serif;margin:1.5em auto;max-width:46em;padding:0 1em;color:#222}"
          "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35em .8em .35em 0;"
          "border-bottom:1px solid #ddd}.primary{font-weight:bold}.trouble{color:#b00}"
          "@media(max-width:30em){table,tbody,tr,td{display:block;border:0}th{display:none}"
          "tr{border-bottom:1px solid #ddd;padding:.5em 0}td{padding:0}}")


def status_page(machine: StateMachine, role: str) -> bytes:
    """What this member knows of its cluster. O(members)."""
    document = machine.document
    title = "Holdfast" if document is None else f"Holdfast cluster {document.cluster}"
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content={REFRESH_S}>"
             "<meta name=viewport content='width=device-width,initial-scale=1'>"
             f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"]
    parts.append(f"<p>This is <b>{escape(machine.name)}</b>, {escape(role)}, "
                 f"published up to transaction {machine.published:,}.")
    if machine.trouble is not None:
        parts.append(f"<p class=trouble>{escape(machine.trouble)}")
    if document is not None:
        parts.append(f"<p>Epoch {document.epoch}, floor {escape(str(document.floor))}, lease {document.ttl:g} s"
                     f"{', <b>paused</b>' if document.paused else ''}"
                     f"{', voters are being changed' if document.joint is not None else ''}.")
        rows = []
        for name, entry in sorted(document.members.items()):
            leads = name == document.leader
            held = machine.acked.get(name)
            lag = "" if held is None or not machine.serving else f"{max(0, machine.end.txid - held):,} behind"
            rows.append(f"<tr{' class=primary' if leads else ''}><td>{escape(name)}<td>"
                        f"{'leader' if leads else 'voter' if name in document.electorate else 'follower'}"
                        f"<td>{escape(entry.address)}<td>{lag}")
        parts.append("<h2>Members</h2><table><tr><th>name<th>part<th>address<th>lag" + "".join(rows) + "</table>")
        rows = [f"<tr><td>{datetime.fromtimestamp(f.at_us / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC<td>epoch {f.epoch}"
                f"<td>{escape(f.leader)}<td>{escape(f.reason)}" for f in reversed(document.failovers[-10:])]
        parts.append("<h2>Changes of primary</h2><table><tr><th>when<th>epoch<th>primary<th>why" + "".join(rows)
                     + "</table>")
    return ("".join(parts) + "\n").encode()
