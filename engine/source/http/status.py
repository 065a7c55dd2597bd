"""What a source shows about itself: metrics for Prometheus, and a small page for people. No I/O."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...contract.plugin import Fact
    from ...store.store import Store
    from ..local import LocalSource
    from .limits import Counters


def metrics(source: LocalSource, store: Store[Any, Any], counters: Counters) -> str:
    """Prometheus' text format."""
    positions = store.positions()
    leases = store.leases.list()
    slots = source.slots()
    rows = [
        ("appended_txid", "gauge", "last transaction appended to the log", positions.appended),
        ("durable_txid", "gauge", "last transaction on stable storage", positions.durable),
        ("acknowledged_txid", "gauge", "last transaction acknowledged", positions.acknowledged),
        ("published_txid", "gauge", "last transaction that views show", positions.published),
        ("checkpointed_txid", "gauge", "last transaction in the engine's durable state", positions.checkpointed),
        ("log_base_txid", "gauge", "transaction after which the log begins", store.log.base.txid),
        ("log_bytes", "gauge", "bytes of all log segments", store.log.size()),
        ("leases", "gauge", "leases that are held", len(leases)),
        ("lease_oldest_seconds", "gauge", "age of the oldest lease", max((s.age for s in leases), default=0.0)),
        ("slots", "gauge", "registered slots", len(slots)),
        ("slot_held_bytes", "gauge", "bytes of log after the slot that is farthest behind",
         max((c.held_bytes for c in slots), default=0)),
        ("clock_doubted_seconds", "gauge",
         "seconds that the clock is ahead of the time by which log ages, 0 if the clock is believed",
         store.clock_doubted_us / 1e6),
        ("source_requests_total", "counter", "requests to this service", counters.requests),
        ("source_refused_total", "counter", "requests and connections refused", counters.refused),
        ("source_sent_bytes_total", "counter", "bytes of images, attachments and log sent", counters.sent_bytes),
    ]
    shown = "".join(f"# HELP holdfast_{name} {text}\n# TYPE holdfast_{name} {kind}\nholdfast_{name} {value}\n"
                   for name, kind, text, value in rows)
    return shown + _of_plugins(store.hooks.shown())


def _of_plugins(facts: list[Fact]) -> str:
    """The figures of plugins, those of one name together."""
    lines: dict[str, str] = {}
    for fact in facts:
        if isinstance(fact.value, int | float):
            name, of = f"holdfast_{fact.name}", fact.of.replace("\\", "\\\\").replace('"', '\\"')
            label = f'{{of="{of}"}}' if of else ""
            begun = lines.get(name, f"# HELP {name} {fact.text}\n# TYPE {name} {fact.kind}\n")
            lines[name] = f"{begun}{name}{label} {fact.value}\n"
    return "".join(lines.values())


def page(source: LocalSource, store: Store[Any, Any]) -> str:
    """One HTML page without scripts or outside resources."""
    info, positions = source.info(), store.positions()
    facts: list[tuple[str, object]] = [
        ("store", info.history.store_id.hex()), ("branch", info.history.branch.id.hex()), ("engine", info.engine),
        ("path", info.path), ("published", positions.published), ("durable", positions.durable),
        ("checkpointed", positions.checkpointed), ("log begins after", info.log_base.txid),
    ]
    if doubted_us := store.clock_doubted_us:
        facts.append(("clock", f"doubted: it is {doubted_us / 3.6e9:.1f} hours ahead of the last known time"))
    facts += [(f"{fact.name.replace('_', ' ')} {fact.of}", fact.value) for fact in store.hooks.shown()
              if fact.value is not None]
    leases = "".join(f"<tr><td>{escape(s.owner)}<td>{s.txid}<td>{s.age:.0f} s<td>{s.remaining:.0f} s"
                     for s in source.leases())
    slots = "".join(f"<tr><td>{escape(c.name)}<td>{c.id}<td>{c.position.txid}<td>{c.held_bytes:,}"
                    for c in source.slots())
    table = "".join(f"<tr><th>{escape(name)}<td>{escape(str(value))}" for name, value in facts)
    return (f"<!doctype html><meta charset=utf-8><title>Holdfast {escape(info.path)}</title>"
            "<style>body{font:15px sans-serif;margin:2em}th,td{text-align:left;padding:.2em 1em .2em 0}</style>"
            f"<h1>Holdfast</h1><table>{table}</table>"
            f"<h2>Leases</h2><table><tr><th>owner<th>log after<th>age<th>left{leases}</table>"
            f"<h2>Slots</h2><table><tr><th>name<th>id<th>has up to<th>bytes of log held{slots}</table>\n")
