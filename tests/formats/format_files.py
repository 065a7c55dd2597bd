"""Takes a whole store or target apart by the page: every file, every byte, and what the transactions in it come to.

What the tables cannot say, the page's text says, and stands here once: how groups follow one another, how a chain is
made, how cells hang together. `format_lmdb` and `format_graph` do the same for the graph engine.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rocksdict
from format_lmdb import Lmdb
from format_page import Misfit, Page, need
from xxhash import xxh3_64_digest, xxh3_64_intdigest, xxh3_128_digest


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
    text = re.sub(r"N{2,}", lambda m: f"[0-9]{{{len(m[0])}}}", text)
    text = re.sub(r"H{2,}", lambda m: f"[0-9a-f]{{{len(m[0])}}}", text)
    text = re.sub(r"(?<=-)N(?=\\\.)|(?<=/)N(?=\\-)|^P(?=\\-)", lambda m: "[0-9]+", text)
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
    others = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = str(path.relative_to(root))
        if name.startswith("gen-") and not name.startswith(current.strip() + "/"):
            others.append(name)
        else:
            _take_file(taken, name, path.read_bytes(), in_force=True)
    older = {one["generation"] for one in taken.documents["MANIFEST"]["older"]} if others else set()
    for name in others:
        need(name.partition("/")[0] in older, f"{name} is of a generation that is neither in force nor kept")
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
    need(in_force or not name.startswith("gen-"), f"{name} is of a generation that is not in force")
    last = name.rpartition("/")[2]
    if what == "text":
        need(re.fullmatch(rb"[ -~]+\n", data), f"{name} is not a line of text")
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
            need((found["layout"], found["store_id"]) == (2, taken.documents["STORE"]["store_id"]), f"{name}: whose?")
            taken.state[name] = found
        elif what.startswith("cell file "):
            taken.state[name] = take_cells(page, what.removeprefix("cell file "), data)
        elif what == "LMDB":
            taken.state[name] = Lmdb(page, data)
        elif what == "SQLite":
            taken.state[name] = take_sqlite(taken)
        elif what == "RocksDB":
            if "pairs" not in taken.state:
                taken.state["pairs"] = take_rocksdb(taken)
        else:
            need(what in ("lock table", "SQLite side file", "RocksDB side file"), f"no way to read {what!r}")


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
        need((group["first"], group["durable"], group["durable_end"]) == (txid + 1, txid, at), f"the group at {at}")
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
        need(found["start"] == at, f"bytes {at} to {found['start']} are not a group")
        segment.footer = page.unpack("footer", found["body"])
        _check_footer(segment, data, at)
    return segment


def _check_footer(segment: Segment, data: bytes, end: int) -> None:
    records, before, base = segment.records, segment.header["base"], segment.header["base_time_us"]
    last = {k: records[-1][k] for k in ("txid", "chain")} if records else before
    chains = {before["txid"]: before["chain"], **{r["txid"]: r["chain"] for r in records}}
    times = {r["txid"]: r["time_us"] for r in records}
    places = [{"txid": group["first"], "time_us": times[group["first"]], "offset": group["offset"],
               "chain": chains[group["durable"]]} for group in segment.groups if group["records"]]
    index = segment.footer["index"] if segment.footer is not None else []
    need(index[:1] == places[:1] and [place for place in places if place in index] == index and len(index) <= 400,
         f"the index is {index}")
    expected = {
        "last": last, "records": len(records), "first_time_us": records[0]["time_us"] if records else base,
        "last_time_us": records[-1]["time_us"] if records else base,
        "complete_us": segment.groups[-1]["time_us"] if segment.groups else base, "data_end": end,
        "digest": xxh3_128_digest(data[:end]), "index": index,
        "attachments": [{"txid": r["txid"], **r["attachment"]} for r in records if r["attachment"] is not None],
        "followed": segment.footer is not None and segment.footer["followed"]}
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
            if before.footer is None or before.footer["last"] != base:
                raise Misfit("segments do not follow one another")
            need(segment.header["ordinal"] == before.header["ordinal"] + 1, "an ordinal is missing")
            era = segment.header["era_txid"]
            need(segment.header["base_time_us"] >= before.footer["complete_us"] or era == base["txid"],
                 "a time that goes back")
            need(era in (base["txid"], before.header["era_txid"]), "an era that begins elsewhere")
            need(before.footer["followed"], "a segment that is followed, and does not say so")
            counts = [before.footer["data_end"], len(before.footer["attachments"])]
            need([segment.header[k] - before.header[k] for k in ("bytes_before", "attachments_before")] == counts,
                 "what came before does not add up")
            earlier = before.header["history"]["branches"]
            need(history["branches"][: len(earlier)] == earlier, "segments of two histories")
        before = segment
    need(before is None or before.footer is None or not before.footer["followed"], "the last segment is missing")
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
    content = taken.page.unpack("{bytes: bytes}", taken.state["state"]["body"])
    return _changed(taken, taken.state["state"], content)


def _changed(taken: Directory, state: dict[str, Any], content: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """A state's keys and values, with what the log has after it."""
    for record in after(taken, state):
        for change in taken.page.unpack(engine_row(taken)[3], record["payload"]):
            if change["value"] is None:
                content.pop(change["key"], None)
            else:
                content[change["key"]] = change["value"]
    return content


# --- engines over foreign databases, which their own libraries read --------------------------------------------------

Pairs = tuple[dict[str, Any], dict[bytes, bytes]]
"""The document of a state, and its pairs."""


@contextmanager
def _state_files(taken: Directory) -> Iterator[Path]:
    """The files of the state, in a directory that a library may write to."""
    with TemporaryDirectory() as place:
        for name, data in taken.raw_state.items():
            (Path(place) / name).write_bytes(data)
        yield Path(place)


def _document(taken: Directory, data: bytes) -> dict[str, Any]:
    name, body, end = taken.page.document(data)
    need(end == len(data) and name == f"{taken.engine} state", f"the state has the document {name}")
    need(taken.page.take("document", data)[0]["version"] == int(engine_row(taken)[1]), "another state format")
    need(body["store_id"] == taken.documents["STORE"]["store_id"], "the state of another store")
    found: dict[str, Any] = body
    return found


def take_sqlite(taken: Directory) -> Pairs:
    with _state_files(taken) as place, closing(sqlite3.connect(place / "state.db")) as database:
        rows = [taken.page.value("pair row", list(row)) for row in database.execute("SELECT * FROM pairs")]
        ((document,),) = database.execute("SELECT document FROM state").fetchall()
    total = 0
    for row in rows:
        row["value"], seal = row["value"][:-8], row["value"][-8:]
        need(seal == xxh3_64_digest(row["value"], seed=xxh3_64_intdigest(row["key"])), f"the seal of {row['key']!r}")
        total += int.from_bytes(seal, "big")
    state = _document(taken, document)
    need((state["count"], state["total"]) == (len(rows), total % (1 << 64)), f"{len(rows)} rows, and {state}")
    return state, {row["key"]: row["value"] for row in rows}


def take_rocksdb(taken: Directory) -> Pairs:
    logs = [data for name, data in taken.raw_state.items() if name.endswith(".log")]
    need(not any(logs), "RocksDB's log is in use")
    with _state_files(taken) as place:
        with rocksdict.Rdict(str(place), rocksdict.Options(raw_mode=True)) as database:
            pairs: dict[Any, bytes] = dict(database.items())
        return _document(taken, pairs.pop(b"")), pairs


def pairs_content(taken: Directory) -> dict[bytes, bytes]:
    """What state and log come to."""
    ((state, content),) = taken.state.values()
    return _changed(taken, state, dict(content))


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
