"""Takes a whole store or target apart by the page: every file, every byte, and what the transactions in it come to.

What the tables cannot say, the page's text says, and stands here once: how groups follow one another, how a chain is
made, how cells, LMDB pages and adjacency lists hang together.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
from format_page import Misfit, Page, need
from xxhash import xxh3_64_digest, xxh3_128_digest

MIB = 1 << 20


@dataclass
class Segment:
    """A log segment: header and footer maps, groups with their offsets, records with header map and chain."""

    header: dict[str, Any]
    groups: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    footer: dict[str, Any] | None = None


@dataclass
class Directory:
    """A store or target, taken apart. Paths are relative; `state` is by file name."""

    page: Page
    root: Path
    engine: str = ""
    documents: dict[str, Any] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    attachments: dict[str, dict[str, Any]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    raw_state: dict[str, bytes] = field(default_factory=dict)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [record for segment in self.segments for record in segment.records]


def pattern(name: str) -> re.Pattern[str]:
    """A name of a files table as a regular expression."""
    text = re.escape(name.strip("`"))
    text = re.sub(r"N{2,}", lambda m: "\\d{%d}" % len(m[0]), text)
    text = re.sub(r"H{2,}", lambda m: "[0-9a-f]{%d}" % len(m[0]), text)
    text = re.sub(r"(?<=-)N(?=\\\.)|^P(?=\\\.)", lambda m: "\\d+", text)
    return re.compile(text.replace("…", ".+"))


def holds(page: Page, table: str, name: str) -> str:
    """What a file of this name holds, by a files table: by its most exact row."""
    found = [(row[0].count("…"), row[1]) for row in page.table("Files: " + table) if pattern(row[0]).fullmatch(name)]
    need(bool(found), f"no row in {table!r} for {name}")
    found.sort()
    need(len(found) == 1 or found[0][0] < found[1][0], f"two rows in {table!r} for {name}")
    return found[0][1]


def take_directory(page: Page, root: Path) -> Directory:
    """Every file below a store or target. Raises `Misfit`."""
    taken = Directory(page, root)
    taken.engine = page.document((root / "STORE").read_bytes())[1]["engine"]
    current = (root / "CURRENT").read_text()
    need(re.fullmatch(r"gen-\d{6}\n", current), f"CURRENT says {current!r}")
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = str(path.relative_to(root))
        _take_file(taken, name, path.read_bytes(), in_force=name.startswith(current.strip() + "/"))
    _check_log(taken)
    return taken


def take_partial(page: Page, root: Path) -> Directory:
    """A target that is being made for the first time: its only generation is a partial one."""
    taken = Directory(page, root)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        _take_file(taken, str(path.relative_to(root)), path.read_bytes(), in_force=True)
    return taken


def _take_file(taken: Directory, name: str, data: bytes, *, in_force: bool) -> None:
    page = taken.page
    what = holds(page, "a store or target", name)
    if what == "generation":
        name = re.sub(r"\.partial/", "/", name, count=1)
        what = holds(page, "a store or target", name)
    need(in_force or "/" not in name, f"{name} is of a generation that is not in force")
    last = name.rpartition("/")[2]
    if what == "text":
        need(re.fullmatch(rb"[ -~]+\n", data), f"{name} is no line of text")
    elif what == "zeros":
        need(not any(data), f"{name} is not zeros")
    elif what.startswith("document "):
        kind, body, end = page.document(data)
        need(kind == what.removeprefix("document ") and end == len(data), f"{name} is a {kind}")
        taken.documents[kind] = body
    elif what == "segment":
        segment = take_segment(page, data)
        need(int(last[:12]) == segment.header["ordinal"], f"{name} is segment {segment.header['ordinal']}")
        taken.segments.append(segment)
    elif what == "attachment":
        found, end = page.take("attachment", data)
        need(found["start"] == 0 and end == len(data), f"{name}: bytes are left over")
        taken.attachments[last] = {**found, "size": len(data), "digest": xxh3_128_digest(data)}
    else:
        need(what == "state", f"no way to read {what!r}")
        taken.raw_state[last] = data


def take_state(taken: Directory) -> None:
    """The files of the state, by the table of the engine."""
    page = taken.page
    tables = {row[0]: row[4].removeprefix("Files: ") for row in page.table("Engines")}
    for name, data in taken.raw_state.items():
        what = holds(page, tables[taken.engine], name)
        if what.startswith("state file "):
            found = page.whole("state file", data)
            need(found["magic"] == what.removeprefix("state file ").encode(), f"{name} starts with {found['magic']!r}")
            need(found["version"] == int(engine_row(taken)[1]), f"{name} has version {found['version']}")
            taken.state[name] = found
        elif what.startswith("cell file "):
            taken.state[name] = take_cells(page, what.removeprefix("cell file "), data)
        elif what == "LMDB":
            taken.state[name] = Lmdb(page, data)
        else:
            need(what == "lock table", f"no way to read {what!r}")


def engine_row(taken: Directory) -> list[str]:
    rows = {row[0]: row for row in taken.page.table("Engines")}
    return rows[taken.engine]


# --- the log ---------------------------------------------------------------------------------------------------------


def take_segment(page: Page, data: bytes) -> Segment:
    kind, header, at = page.document(data)
    need(kind == "segment header", f"a segment starts with a {kind}")
    start = at + -at % 512
    need(not any(data[at:start]), "the header's padding is not zero")
    segment = Segment(header)
    seed = int.from_bytes(header["segment_id"][:8], "little")
    magic = page.row("group", "magic").meaning.strip("`").encode()
    txid, chain, at = header["base"]["txid"], header["base"]["chain"], start
    time_us, epoch = header["base_time_us"], header["epoch"]
    while data[at : at + len(magic)] == magic:
        group, end = page.take("group", data, at, seed=seed)
        need((group["first"], group["durable"], group["durable_end"]) == (txid + 1, txid, at), f"a group at {at}: {group}")
        for record in group["content"]:
            head = page.unpack("record header", record["header"])
            need(head["payload_length"] == record["payload_length"], "two payload lengths")
            need(head["txid"] == txid + 1 and head["time_us"] >= time_us and head["epoch"] >= epoch, f"{head}")
            txid, time_us, epoch = head["txid"], head["time_us"], head["epoch"]
            chain = xxh3_128_digest(chain + record["header"] + record["payload"])
            segment.records.append({**head, "payload": record["payload"], "chain": chain})
        need(group["time_us"] == time_us if group["records"] else group["time_us"] >= time_us, "a group's time")
        time_us = group["time_us"]
        segment.groups.append({**group, "offset": at})
        at = end
    if any(data[at:]):
        found, _ = page.take("footer", data, at)
        need(found["start"] == at, f"bytes {at} to {found['start']} are no group")
        segment.footer = page.unpack("footer", found["body"])
        _check_footer(segment, data, at)
    return segment


def _check_footer(segment: Segment, data: bytes, end: int) -> None:
    records, base = segment.records, segment.header["base_time_us"]
    last = {k: records[-1][k] for k in ("txid", "chain")} if records else segment.header["base"]
    index: list[dict[str, Any]] = []
    chains = {segment.header["base"]["txid"]: segment.header["base"]["chain"], **{r["txid"]: r["chain"] for r in records}}
    times = {r["txid"]: r["time_us"] for r in records}
    for group in segment.groups:
        if group["records"] and (not index or group["offset"] - index[-1]["offset"] >= 256 << 10):
            index.append({"txid": group["first"], "time_us": times[group["first"]], "offset": group["offset"],
                          "chain": chains[group["durable"]]})
    expected = {
        "last": last, "records": len(records), "first_time_us": records[0]["time_us"] if records else base,
        "last_time_us": records[-1]["time_us"] if records else base,
        "complete_us": segment.groups[-1]["time_us"] if segment.groups else base, "data_end": end,
        "digest": xxh3_128_digest(data[:end]), "index": index,
        "attachments": [{"txid": r["txid"], **r["attachment"]} for r in records if r["attachment"] is not None]}
    need(segment.footer == expected, f"the footer is {segment.footer}, and should be {expected}")


def _check_log(taken: Directory) -> None:
    """Segments follow one another, histories and chains too; attachments are those that records name."""
    store_id = taken.documents["STORE"]["store_id"]
    origin = xxh3_128_digest(b"holdfast chain origin" + store_id)
    before: Segment | None = None
    for segment in taken.segments:
        history, base = segment.header["history"], segment.header["base"]
        first = history["branches"][0]
        need(history["store_id"] == store_id and segment.header["engine"] == taken.engine, "another store's segment")
        need((first["txid"], first["chain"]) == (0, origin), "the first branch begins elsewhere")
        need(base["txid"] > 0 or base["chain"] == origin, "the chain begins elsewhere")
        need(history["branches"][-1]["txid"] <= base["txid"], "records of another branch")
        if before is not None:
            need(before.footer is not None and before.footer["last"] == base, "segments do not follow one another")
            need(segment.header["ordinal"] == before.header["ordinal"] + 1, "an ordinal is missing")
            need(history["branches"][: len(before.header["history"]["branches"])] == before.header["history"]["branches"],
                 "segments of two histories")
        before = segment
    named = {}
    for record in taken.records:
        need(str(record["payload_version"]) == engine_row(taken)[2], f"payload version {record['payload_version']}")
        if record["attachment"] is not None:
            named[record["attachment"]["name"]] = record["attachment"]
    need(named.keys() == taken.attachments.keys(), "other attachments than records name")
    for name, reference in named.items():
        need(all(taken.attachments[name][k] == reference[k] for k in ("size", "digest")), f"attachment {name}")


# --- the records engine ----------------------------------------------------------------------------------------------

Cells = dict[tuple[int, int], bytes]


def take_cells(page: Page, magic: str, data: bytes) -> list[bytes]:
    """The cells of a cell file, each checked."""
    header, start = page.take("cell file header", data)
    size = header["cell_bytes"]
    need(header["magic"] == magic.encode() and start == size and len(data) % size == 0, f"{magic}: {header}")
    file = [row[1].rpartition(" ")[2] for row in page.table("Files: records")].index(magic)
    cells = [data[at : at + size] for at in range(start, len(data), size)]
    for number, cell in enumerate(cells):
        take_cell(page, file, number, cell)
    return cells


def take_cell(page: Page, file: int, number: int, cell: bytes) -> dict[str, Any]:
    """One cell. One that was never written has no state."""
    if not any(cell):
        need(number > 0, "a file without marks")
        return {"state": 0}
    kind = "marks cell" if not number else ("value cell", "overflow cell")[file]
    found = page.whole(kind, cell, place=page.pack("place", file=file, number=number))
    need(kind != "value cell" or not any(found["inline"][found["length"] :]), "bytes behind a value")
    need(kind != "overflow cell" or not any(found["data"][found["used"] :]), "bytes behind a value")
    need(kind == "marks cell" or found["state"] in (1, 2), f"a cell of state {found}")
    need(kind != "marks cell" or file == 1 or found["free"] == 0, "a free chain of values")
    return found


def records_content(taken: Directory) -> dict[int, bytes]:
    """The values by number: what state and log come to."""
    page = taken.page
    cells: Cells = {(file, n): cell for file, name in enumerate(("values", "overflow"))
                    for n, cell in enumerate(taken.state[name])}
    for record in after(taken, taken.state["position"]):
        for change in page.unpack(engine_row(taken)[3], record["payload"]):
            place = change["place"]["file"], change["place"]["number"]
            take_cell(page, *place, change["cell"])
            cells[place] = change["cell"]
    found = {place: take_cell(page, *place, cell) for place, cell in cells.items()}
    content, used = {}, set()
    for (file, number), cell in found.items():
        if not file and number and cell["state"] == 2:
            need(number < found[0, 0]["next"], "a number beyond the mark")
            value, at = cell["inline"][: cell["length"]], cell["chain"]
            while at:
                need(at not in used and found[1, at]["state"] == 2, f"overflow cell {at} of value {number}")
                used.add(at)
                value, at = value + found[1, at]["data"][: found[1, at]["used"]], found[1, at]["next"]
            need(len(value) == cell["length"], f"value {number} has another length")
            content[number] = value
    at = found[1, 0]["free"]
    while at:
        need(at not in used and found[1, at]["state"] == 1, f"free overflow cell {at}")
        used.add(at)
        at = found[1, at]["next"]
    need(used == set(range(1, found[1, 0]["next"])), "overflow cells that are neither used nor free")
    return content


def after(taken: Directory, position: dict[str, Any]) -> list[dict[str, Any]]:
    """The records after the position of a state, which the log must know. Of a backup: after its p0."""
    manifest = taken.documents.get("MANIFEST")
    txid, chain = position["txid"], position["chain"]
    if manifest is not None and not manifest["settled"]:
        need(txid >= manifest["p0"]["txid"], "the image is older than its manifest says")
        txid, chain = manifest["p0"]["txid"], manifest["p0"]["chain"]
    base = taken.segments[0].header["base"]
    chains = {base["txid"]: base["chain"], **{r["txid"]: r["chain"] for r in taken.records}}
    need(chains.get(txid) == chain, f"the log does not know the state's position, {txid}")
    return [record for record in taken.records if record["txid"] > txid]


def memory_content(taken: Directory) -> dict[bytes, bytes]:
    content: dict[bytes, bytes] = taken.page.unpack("{bytes: bytes}", taken.state["state"]["body"])
    for record in after(taken, taken.state["state"]):
        for change in taken.page.unpack(engine_row(taken)[3], record["payload"]):
            if change["value"] is None:
                content.pop(change["key"], None)
            else:
                content[change["key"]] = change["value"]
    return content


# --- LMDB ------------------------------------------------------------------------------------------------------------

EMPTY = (1 << 64) - 1


class Lmdb:
    """An LMDB file: the databases in it by name, as sorted (key, value), every page accounted for.

    Attributes:
        databases: what they hold.
        whole: it is as an image is: no more than its pages, free ones zero, both meta pages alike.
    """

    def __init__(self, page: Page, data: bytes) -> None:
        self.page, self.data = page, data
        self.size = page.take("LMDB meta page", data[:512])[0]["free"]["pad"]
        need(self.size in (1 << n for n in range(9, 17)), f"pages of {self.size} bytes")
        first, second = (page.whole("LMDB meta page", data[at : at + self.size]) for at in (0, self.size))
        need((first["number"], second["number"]) == (0, 1), "the numbers of the meta pages")
        meta = max(first, second, key=lambda m: m["txn"])
        self.used: set[int] = {0, 1}
        free: list[int] = []
        for key, value, _ in self._walk(meta["free"]):
            need(len(key) == 8 and int.from_bytes(key, "little") <= meta["txn"], f"free pages of {key!r}")
            numbers = [int.from_bytes(value[i : i + 8], "little") for i in range(0, len(value), 8)]
            need(numbers[0] <= len(numbers) - 1, "fewer free pages than their count")
            free += numbers[1 : numbers[0] + 1]
        self.databases: dict[str, list[tuple[bytes, bytes]]] = {}
        for key, value, flags in self._walk(meta["main"]):
            need(flags == 2, f"{key!r} is no database")
            self.databases[key.decode()] = [(k, v) for k, v, f in self._walk(page.whole("LMDB tree", value)) if f != 2]
        need(len(free) == len(set(free)) and not self.used & set(free), "free pages that are used")
        need(self.used | set(free) == set(range(meta["last_page"] + 1)), "pages that are neither used nor free")
        size = self.size
        self.whole = (len(data) == size * (meta["last_page"] + 1) and data[8:size] == data[size + 8 : 2 * size]
                      and not any(any(data[size * n : size * (n + 1)]) for n in free))
        need(size * (max(self.used) + 1) <= len(data) and meta["map_size"] >= len(data), "a file that is too short")

    def _walk(self, tree: dict[str, Any]) -> list[tuple[bytes, bytes, int]]:
        """(key, value, flags) of a tree, in order; its pages counted and compared with what it says."""
        found: list[tuple[bytes, bytes, int]] = []
        self._counts = {1: 0, 2: 0, 4: 0}
        depth = 0 if tree["root"] == EMPTY else self._page(tree["root"], found)
        counts = self._counts
        need((depth, counts[1], counts[2], counts[4], len(found)) == tuple(tree[k] for k in (
            "depth", "branch_pages", "leaf_pages", "overflow_pages", "entries")), f"a tree that is not {tree}")
        keys = [key for key, *_ in found]
        integers = [int.from_bytes(key, "little") for key in keys] if tree["flags"] & 8 else keys
        need(integers == sorted(integers), "a tree out of order")  # type: ignore[type-var]
        return found

    def _own(self, number: int, kind: int) -> bytes:
        need(number not in self.used, f"page {number} is used twice")
        self.used.add(number)
        self._counts[kind] += 1
        data = self.data[number * self.size : (number + 1) * self.size]
        need(len(data) == self.size, f"page {number} is not there")
        return data

    def _page(self, number: int, found: list[tuple[bytes, bytes, int]]) -> int:
        data = self.data[number * self.size : (number + 1) * self.size]
        head = self.page.whole("LMDB page", data)
        need(head["flags"] in (1, 2) and head["number"] == number, f"page {number} is {head['flags']}")
        self._own(number, head["flags"])
        start = len(data) - len(head["rest"])
        need(start <= head["lower"] <= head["upper"] <= len(data) and head["lower"] % 2 == 0, f"page {number}'s bounds")
        offsets = [int.from_bytes(data[at : at + 2], "little") for at in range(start, head["lower"], 2)]
        extents, depths = [], set()
        for offset in offsets:
            node, _ = self.page.take("LMDB node", data, offset)
            size = node["low"] + (node["high"] << 16)
            end = len(data) - len(node["rest"])
            if head["flags"] == 1:
                depths.add(self._page(size + (node["third"] << 32), found))
            elif node["third"] == 1:
                found.append((node["key"], self._overflow(int.from_bytes(node["rest"][:8], "little"), size), 1))
                end += 8
            else:
                need(node["third"] in (0, 2) and size <= len(node["rest"]), f"a node with flags {node['third']}")
                found.append((node["key"], node["rest"][:size], node["third"]))
                end += size
            extents.append((offset, end + end % 2))
        extents.sort()
        need([first for first, _ in extents] == [head["upper"], *(end for _, end in extents[:-1])]
             and extents[-1][1] == len(data), f"page {number} has bytes between its nodes")
        need(len(depths) <= 1, "a tree of different depths")
        return 1 + (depths.pop() if depths else 0)

    def _overflow(self, number: int, size: int) -> bytes:
        head, _ = self.page.take("LMDB overflow page", self.data[number * self.size : (number + 1) * self.size])
        need(head["number"] == number, f"overflow page {number}")
        data = b"".join(self._own(number + i, 4) for i in range(head["pages"]))
        start = self.size - len(head["rest"])
        need(0 <= len(data) - start - size < self.size, f"an overflow value of {size} bytes on {head['pages']} pages")
        return data[start : start + size]


# --- the graph engine ------------------------------------------------------------------------------------------------

PropertyMap = dict[int, Any]


@dataclass
class Graph:
    """A graph in tokens: what a state, or transactions, come to."""

    tokens: dict[int, tuple[str, Any]] = field(default_factory=dict)
    nodes: dict[int, int] = field(default_factory=dict)
    node_properties: dict[int, PropertyMap] = field(default_factory=dict)
    edges: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    edge_properties: dict[int, PropertyMap] = field(default_factory=dict)
    indexes: list[dict[str, int]] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)

    def named(self) -> dict[str, Any]:
        """In names, as a view shows it. Raises `Misfit` where the marks are not right."""
        marks = self.marks
        need((marks["nodes"], marks["edges"]) == (len(self.nodes), len(self.edges)), f"the counts of {marks}")
        need(all(i < marks["next_node"] for i in self.nodes) and all(i < marks["next_edge"] for i in self.edges)
             and all(t < marks["next_token"] for t in self.tokens), f"ids beyond {marks}")

        def name(token: int, kind: str) -> Any:
            need(self.tokens[token][0] == kind, f"token {token} is no {kind}")
            return self.tokens[token][1]

        def properties(cells: PropertyMap) -> dict[str, Any]:
            return {name(key, "k"): value for key, value in cells.items()}

        return {
            "nodes": {i: (tuple(sorted(name(t, "l") for t in name(s, "s"))), properties(self.node_properties.get(i, {})))
                      for i, s in self.nodes.items()},
            "edges": {i: (source, name(kind, "t"), target, properties(self.edge_properties.get(i, {})))
                      for i, (source, target, kind) in self.edges.items()},
            "indexes": sorted((name(x["label"], "l"), name(x["key"], "k")) for x in self.indexes)}


def property_map(page: Page, packed: bytes) -> PropertyMap:
    """A property map, each value in its shortest form and with a first byte as the page says."""
    unpacker = msgpack.Unpacker(timestamp=0, strict_map_key=False)
    unpacker.feed(packed)
    found: PropertyMap = {}
    for _ in range(unpacker.read_map_header()):
        key = unpacker.unpack()
        start = unpacker.tell()
        found[key] = unpacker.unpack()
        raw = packed[start : unpacker.tell()]
        need(msgpack.packb(found[key]) == raw, f"a value that has a shorter form: {raw!r}")
        _check_first_byte(page, found[key])
    need(unpacker.tell() == len(packed) and list(found) == sorted(found) and bool(found), f"a property map: {packed!r}")
    return found


def _check_first_byte(page: Page, value: Any) -> None:
    name = {msgpack.Timestamp: "datetime"}.get(type(value), type(value).__name__)
    row = next((row for row in page.table("Property values") if row[0] == name), None)
    if row is None:
        raise Misfit(f"no value of type {name}")
    first = msgpack.packb(value)[0]
    spans = [span.strip().partition("-") for span in row[1].split(",")]
    need(any(int(a, 16) <= first <= int(b or a, 16) for a, _, b in spans), f"a {name} that starts with {first:x}")
    for item in islice(value.values() if name == "dict" else value if name == "list" else (), 100):
        _check_first_byte(page, item)


def digest(value: Any) -> bytes:
    """A value's digest, as the page has it."""
    def ordered(v: Any) -> Any:
        if type(v) is dict:
            return {key: ordered(v[key]) for key in sorted(v)}
        return [ordered(item) for item in v] if type(v) is list else v

    return xxh3_64_digest(msgpack.packb(ordered(value)))


def apply_payload(taken: Directory, graph: Graph, record: dict[str, Any]) -> None:
    """One transaction, set over what `graph` holds."""
    page = taken.page
    if record["attachment"] is not None:
        _apply_bulk(taken, graph, record)
        return
    payload = page.unpack(engine_row(taken)[3], record["payload"])
    graph.tokens |= {t["token"]: (t["kind"], t["value"]) for t in payload["tokens"]}
    for one in payload["nodes"]:
        _set(graph.nodes, one["node"], one["labels"])
    for one in payload["edges"]:
        need(one["present"] in (0, 1), f"{one}")
        _set(graph.edges, one["edge"], (one["source"], one["target"], one["type"]) if one["present"] else None)
    for cells, items in ((graph.node_properties, payload["node_properties"]),
                         (graph.edge_properties, payload["edge_properties"])):
        need(len(items) % 2 == 0, "properties without an id")
        for item, packed in zip(items[::2], items[1::2], strict=True):
            need(type(item) is int and type(packed) is bytes, "ids and maps do not take turns")
            _set(cells, item, property_map(page, packed) if packed else None)
    graph.marks = payload["marks"]
    _check_rows(graph, payload)
    if payload["indexes"] is not None:
        graph.indexes = payload["indexes"]


def _check_rows(graph: Graph, payload: dict[str, Any]) -> None:
    """Every changed node that matches has a row, and no other node has one."""
    changed = {*payload["node_properties"][::2], *(one["node"] for one in payload["nodes"])}
    kept = [x for x in graph.indexes if payload["indexes"] is None or x in payload["indexes"]]
    matching = {(x["index"], digest(cells[x["key"]]), node) for x in kept for node in changed & graph.nodes.keys()
                if x["key"] in (cells := graph.node_properties.get(node, {}))
                and x["label"] in graph.tokens[graph.nodes[node]][1]}
    rows = {(row["index"], row["digest"], row["node"]) for row in payload["rows"]}
    need(matching <= rows and {node for *_, node in rows} <= changed, f"rows {rows}, and {matching} match")


def _set(cells: dict[int, Any], key: int, value: Any) -> None:
    if value:
        cells[key] = value
    else:
        cells.pop(key, None)


def _apply_bulk(taken: Directory, graph: Graph, record: dict[str, Any]) -> None:
    page = taken.page
    payload = page.unpack("bulk payload", record["payload"])
    load = page.whole("bulk load", taken.attachments[record["attachment"]["name"]]["content"])
    graph.tokens |= {t["token"]: (t["kind"], t["value"]) for t in payload["tokens"]}
    sets = load["label_sets"] or [load["uniform"]] * load["nodes"]
    need((load["first_node"], load["first_edge"]) == (graph.marks.get("next_node", 1), graph.marks.get("next_edge", 1)),
         "ids that are not the next")
    graph.nodes |= {load["first_node"] + i: labels for i, labels in enumerate(sets)}
    graph.edges |= {load["first_edge"] + i: (source, target, load["type"])
                    for i, (source, target) in enumerate(zip(load["sources"], load["targets"], strict=True))}
    for cells, packed in ((graph.node_properties, load["node_properties"]), (graph.edge_properties, load["edge_properties"])):
        ids = []
        for one in page.several("property cell", packed):
            ids.append(one["id"])
            cells[one["id"]] = property_map(page, one["properties"])
        need(ids == sorted(set(ids)), "property cells out of order")
    graph.marks = payload["marks"]


def graph_in_lmdb(page: Page, lmdb: Lmdb) -> tuple[Graph, dict[str, Any]]:
    """The graph that the databases hold, and its position; what is derived is compared with what it derives from."""
    rows = {row[0]: (row[1], row[2]) for row in page.table("Databases")}
    need(rows.keys() == lmdb.databases.keys(), f"databases {sorted(lmdb.databases)}")
    taken = {name: [(_cell(page, rows[name][0], key), _cell(page, rows[name][1], value)) for key, value in pairs]
             for name, pairs in lmdb.databases.items()}
    need(len(taken["meta"]) == 1, "more than one state")
    state = taken["meta"][0][1]
    graph = Graph(marks=state["marks"], indexes=state["indexes"])
    graph.tokens = {key["token"]: (value["kind"], value["value"]) for key, value in taken["tokens"]}
    for key, block in taken["nodes"]:
        need(any(block["labels"]), "a block without a node")
        first = key["number"] * len(block["labels"])
        graph.nodes |= {first + i: labels for i, labels in enumerate(block["labels"]) if labels}
    for key, block in taken["edges"]:
        need(any(e["flags"] for e in block["edges"]), "a block without an edge")
        for i, edge in enumerate(block["edges"], key["number"] * len(block["edges"])):
            need(edge["flags"] in (1, 3) or not any(edge.values()), f"edge {i}: {edge}")
            if edge["flags"]:
                graph.edges[i] = edge["source"], edge["target"], edge["type"]
                need((edge["flags"] == 3) == any(k["number"] == i for k, _ in taken["edge_props"]), f"edge {i}: {edge}")
    graph.node_properties = {key["number"]: value for key, value in taken["node_props"]}
    graph.edge_properties = {key["number"]: value for key, value in taken["edge_props"]}
    _check_adjacency(graph, taken["adjacency"])
    _check_labels(graph, taken["labels"])
    expected = {(x["index"], digest(cells[x["key"]]), node) for x in graph.indexes
                for node, cells in graph.node_properties.items()
                if x["key"] in cells and x["label"] in graph.tokens[graph.nodes[node]][1]}
    need({(k["index"], k["digest"], k["node"]) for k, _ in taken["index"]} == expected, "the rows of the indexes")
    return graph, {"txid": state["txid"], "chain": state["chain"]}


def _cell(page: Page, kinds: str, data: bytes) -> Any:
    """A key or value of a database, by the type that its row gives. Of two layouts, the one that fits its length."""
    kind = kinds
    if kinds == "nothing":
        need(not data, "a value where there should be none")
        return None
    if kinds == "property map":
        return property_map(page, data)
    if kinds.startswith("document "):
        name, body, end = page.document(data)
        need(name == kinds.removeprefix("document ").strip("`") and end == len(data), f"a document {name}")
        return body
    if kinds in page.arrays:
        return page.unpack(kind, data)
    fits = []
    for choice in kinds.split(" or "):
        try:
            fits.append(page.whole(choice, data, n=len(data) // 16))
        except Misfit as error:
            failed = error
    need(len(fits) < 2, f"{kinds}: both fit {data!r}")
    if not fits:
        raise failed
    return fits[0]


def _check_adjacency(graph: Graph, taken: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    lists: dict[tuple[int, int], list[tuple[int, int]]] = {}
    tails: dict[tuple[int, int], list[tuple[int, int]]] = {}
    before: dict[tuple[int, int], int] = {}
    for key, value in taken:  # a tail comes before its blocks
        place, entries = (key["node"], key["lane"]), list(zip(value["edges"], value["neighbours"], strict=True))
        need(len(entries) <= 254, f"{len(entries)} entries in one block")
        if "first" in key:
            have = lists[place]
            need(place in tails and bool(entries) and entries[0][0] >= key["first"] and "before" not in value, f"{key}")
            need(not have or have[-1][0] < key["first"], f"{key}")
            have += entries
        else:
            tails[place] = entries
            lists[place] = []
            before[place] = value.get("before", 0)
            need(value.get("before") != 0 and (entries or before[place]), f"{key}: an empty list")
    expected: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for edge, (source, target, kind) in sorted(graph.edges.items()):
        expected.setdefault((source, 2 * kind), []).append((edge, target))
        expected.setdefault((target, 2 * kind + 1), []).append((edge, source))
    need({place: len(have) for place, have in lists.items()} == before, "the counts before tails")
    need({place: have + tails[place] for place, have in lists.items()} == expected, "the adjacency lists")


def _check_labels(graph: Graph, taken: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    bits = set()
    for key, value in taken:
        need(any(value["bits"]), "a bitmap without a bit")
        bits |= {(key["label"], 8 * len(value["bits"]) * key["window"] + 8 * j + i)
                 for j, byte in enumerate(value["bits"]) for i in range(8) if byte >> i & 1}
    need(bits == {(label, node) for node, s in graph.nodes.items() for label in graph.tokens[s][1]}, "the bitmaps")


def graph_content(taken: Directory) -> dict[str, Any]:
    """State and log: the state by LMDB's pages, the transactions after it by their payloads."""
    graph, position = graph_in_lmdb(taken.page, taken.state["data.mdb"])
    for record in after(taken, position):
        apply_payload(taken, graph, record)
    return graph.named()


def logged_graph(taken: Directory) -> dict[str, Any]:
    """The graph by the log alone, which begins with the first transaction."""
    graph = Graph()
    need(taken.segments[0].header["base"]["txid"] == 0, "the log does not begin at the beginning")
    for record in taken.records:
        apply_payload(taken, graph, record)
    return graph.named()


# --- backups ---------------------------------------------------------------------------------------------------------


def check_image(state: dict[str, bytes], files: list[dict[str, Any]], chunk: int) -> None:
    """That an image's files are those that a manifest or `COPY` lists, with the digests of their chunks."""
    need(state.keys() == {f["name"] for f in files}, f"files {sorted(state)}")
    for f in files:
        data = state[f["name"]]
        digests = b"".join(xxh3_128_digest(data[at : at + chunk]) for at in range(0, len(data), chunk))
        need((f["size"], f["digests"]) == (len(data), digests), f"{f['name']} is not as it was copied")


# --- over the network ------------------------------------------------------------------------------------------------


def take_stream(page: Page, data: bytes) -> list[tuple[str, Any, Any]]:
    """A record stream: (name of the frame, header, payload) each."""
    rows = {int(row[0]): row for row in page.table("Frames")}
    frames = []
    for frame in page.several("frame", data):
        need(frame["kind"] in rows, f"a frame of kind {frame['kind']}")
        _, name, header, payload = rows[frame["kind"]]
        frames.append((name, _part(page, header, frame["header"]), _part(page, payload, frame["payload"])))
    return frames


def _part(page: Page, kind: str, data: bytes) -> Any:
    if kind == "nothing":
        need(not data, "bytes where there should be none")
        return None
    if kind in page.layouts:
        return page.whole(kind, data)
    if kind in page.objects:
        return page.value(kind, json.loads(data))
    return data
