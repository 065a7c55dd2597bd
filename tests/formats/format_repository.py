"""Takes a whole repository apart by the page: every object, the state that its catalog makes, and what its images and
archived log come to.

What the page's text says stands here once: how frames are tagged and encrypted, what an entry does to the state, and
how files and log are put together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from format_files import Directory, Segment, holds, take_state
from format_page import Misfit, Page, need
from xxhash import xxh3_128_digest

LEAF_BYTES = 64 << 20
PART_BYTES = 4 << 20
GROUP_BYTES = 256 << 10


@dataclass(frozen=True)
class Frame:
    """A frame of an object: where it lies, and its content."""

    offset: int
    length: int
    content: bytes


@dataclass(frozen=True)
class Part:
    """A block or a leaf in a frame of a pack."""

    frame: int
    start: int
    content: bytes


@dataclass
class Piece:
    """What a piece says, and its records, as in a segment."""

    said: dict[str, Any]
    records: list[dict[str, Any]]


@dataclass
class Repository:
    """A repository, taken apart. All by name, except `entries`, which are in order.

    Attributes:
        secrets: the repository's keys, one for each object `keys/N`.
        frames: of the objects that are packs. parts: their blocks and leaves.
        maps: of the objects that are one map: checkpoints, roots, writers.
        attached: parts of attachments.
        state: what the catalog's entries come to, as a checkpoint says it.
    """

    page: Page
    root: Path
    secrets: tuple[bytes, ...]
    id: bytes = b""
    encrypted: bool = False
    data_keys: dict[int, bytes] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    headers: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    frames: dict[str, list[Frame]] = field(default_factory=dict)
    parts: dict[str, list[Part]] = field(default_factory=dict)
    pieces: dict[str, Piece] = field(default_factory=dict)
    maps: dict[str, dict[str, Any]] = field(default_factory=dict)
    attached: dict[str, bytes] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


# --- objects ---------------------------------------------------------------------------------------------------------


def take_repository(page: Page, root: Path, secrets: tuple[bytes, ...]) -> Repository:
    """Every object of a repository in a directory. Raises `Misfit`."""
    taken = Repository(page, root, secrets)
    found = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    what = {name: holds(page, "a repository", name) for name in found}
    kinds = {row[1]: (int(row[0]), row[2]) for row in page.table("Kinds of objects")}
    for name, kind in what.items():
        if kind == "document repository":
            said = _document(page, kind, found[name])
            taken.id, taken.encrypted = said["id"], said["encrypted"]
    need(taken.id, "no document")
    for name, kind in what.items():
        if kind == "document keys":
            _take_keys(taken, int(name.removeprefix("keys/")), found[name])
    need(len(taken.data_keys) == len(secrets), f"data keys {list(taken.data_keys)}")
    need(taken.encrypted == bool(secrets), f"encrypted: {taken.encrypted}")
    for name, kind in what.items():
        if kind in kinds:
            _take_object(taken, name, *kinds[kind], found[name])
        elif kind == "URL":
            need(re.fullmatch(rb"file:///[ -~]+", found[name]), f"{name}: {found[name]!r}")
        else:
            need(kind.startswith("document ") or (kind == "random" and len(found[name]) == 64), f"{name} is a {kind}")
    _check_catalog(taken)
    return taken


def _document(page: Page, kind: str, data: bytes) -> dict[str, Any]:
    name, body, end = page.document(data)
    need(f"document {name}" == kind and end == len(data), f"a document {name}, and not a {kind}")
    found: dict[str, Any] = body
    return found


def _take_keys(taken: Repository, generation: int, data: bytes) -> None:
    """The data keys of an object `keys/N`: those that were there before, and a new one."""
    said = _document(taken.page, "document keys", data)
    aead, keys = AESGCM(_wrapping_key(taken.secrets[generation - 1], said["salt"])), {}
    for one in said["keys"]:
        bound = taken.page.pack("bound to a data key", repository=taken.id, number=one["number"])
        keys[one["number"]] = _decrypted(aead, one["nonce"], one["wrapped"], bound)
    need(list(keys) == list(range(1, generation + 1)) and all(len(key) == 32 for key in keys.values()), "other keys")
    need(keys | taken.data_keys == keys, "data keys that changed")
    taken.data_keys = keys


@cache
def _wrapping_key(secret: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(secret, salt=salt, n=32_768, r=8, p=1, maxmem=64 << 20, dklen=32)


def _decrypted(aead: AESGCM, nonce: bytes, data: bytes, bound: bytes) -> bytes:
    try:
        return aead.decrypt(nonce, data, bound)
    except InvalidTag as error:
        raise Misfit("a tag does not match") from error


def _take_object(taken: Repository, name: str, kind: int, holds: str, data: bytes) -> None:
    page = taken.page
    if match := re.search(r"/(\d{6})/(\d{10})$", name):
        need(int(match[1]) == int(match[2]) // 10_000 and int(match[2]) > 0, f"{name} is in another folder")
    frames = take_frames(taken, name, kind, data)
    taken.sizes[name] = len(data)
    joined = b"".join(frame.content for frame in frames)
    if holds == "joined: msgpack: catalog entry":
        taken.entries.append(page.unpack("catalog entry", joined))
        need(taken.entries[-1]["number"] == len(taken.entries) == _number(name), f"{name}: a number")
    elif match := re.fullmatch(r"joined: msgpack: (\w+)", holds):
        taken.maps[name] = page.unpack(match[1], joined)
    elif match := re.fullmatch(r"blocks, or a leaf, each; the last: msgpack: (\[.+\])", holds):
        listed = page.unpack(match[1], frames.pop().content)
        taken.frames[name], taken.parts[name] = frames, []
        filled = [0] * len(frames)
        for one in listed:
            frame = frames[one["frame"]]
            need((one["offset"], one["length"]) == (frame.offset, frame.length), f"{name}: a frame that is elsewhere")
            need(one["start"] == filled[one["frame"]], f"{name}: blocks that do not follow each other")
            filled[one["frame"]] += one["size"]
            part = Part(one["frame"], one["start"], frame.content[one["start"] : filled[one["frame"]]])
            need(hashlib.sha256(part.content).digest() == one["digest"], f"{name}: another block")
            taken.parts[name].append(part)
            if one["number"] < 0:
                need(part.content == frame.content, f"{name}: a leaf that shares its frame")
                page.unpack("leaf", part.content)
            else:
                need(len(frame.content) <= GROUP_BYTES, f"{name}: a frame that is too large")
        need(filled == [len(frame.content) for frame in frames], f"{name}: bytes that are of no block")
    elif match := re.fullmatch(r"the first: msgpack: (\w+); the others, joined: (.+)s, one after the other", holds):
        taken.pieces[name] = _piece(taken, name, page.unpack(match[1], frames[0].content), match[2],
                                    b"".join(frame.content for frame in frames[1:]))
    else:
        need(holds == "joined: 4 MiB of the attachment, the last part what is left", f"no way to read {holds!r}")
        taken.attached[name] = joined


def take_frames(taken: Repository, name: str, kind: int, data: bytes) -> list[Frame]:
    """The frames of an object, checked and in clear."""
    page = taken.page
    header, at = page.take("object header", data)
    taken.headers[name] = data[:at]
    need(header["kind"] == kind and header["flags"] == int(taken.encrypted), f"{name} has the header {header}")
    need(taken.encrypted or (header["data_key"], header["salt"]) == (0, bytes(32)), f"{name} has the header {header}")
    aead = None
    if taken.encrypted:
        key = HKDF(SHA256(), 32, header["salt"], b"holdfast object").derive(taken.data_keys[header["data_key"]])
        aead = AESGCM(key)
    frames: list[Frame] = []
    last = False
    while not last:
        frame, end = page.take("object frame", data, at)
        flags, number = frame["flags"], len(frames)
        need(flags in range(4), f"{name} has a frame with the flags {flags}")
        bound = page.pack("bound to a frame", repository=taken.id, kind=kind, version=header["version"],
                          name_length=len(name), name=name.encode(), number=number, flags=flags)
        content = frame["body"]
        if aead is not None:
            nonce = page.pack("nonce of a frame", number=number)
            content = _decrypted(aead, nonce, content + frame["tag"], bound)
        else:
            need(frame["tag"] == xxh3_128_digest(bound + content), f"{name}: the tag of frame {number}")
        if flags & 1:
            try:
                content = zstandard.ZstdDecompressor().decompress(content, max_output_size=PART_BYTES)
            except zstandard.ZstdError as error:
                raise Misfit(f"{name}: frame {number}: {error}") from error
        need(max(len(content), frame["length"]) <= PART_BYTES, f"{name}: frame {number} is too large")
        frames.append(Frame(at, end - at, content))
        last, at = bool(flags & 2), end
    ends = page.whole("object end", data[at:])
    need(ends == {"number": len(frames) - 1, "length": frames[-1].length}, f"{name} ends with {ends}")
    return frames


def _piece(taken: Repository, name: str, said: dict[str, Any], kind: str, data: bytes) -> Piece:
    page = taken.page
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    records: list[dict[str, Any]] = []
    named: list[dict[str, Any]] = []
    txid, chain = said["after"]["txid"], said["after"]["chain"]
    for one in unpacker:
        record = page.value(kind, one)
        head = page.unpack("record header", record["header"])
        beside = None
        if isinstance(record["payload"], str):
            beside = record["payload"]
            record["payload"] = b"".join(_parts(taken, _files_of(name), beside, head["payload_length"]))
        need((head["txid"], head["payload_length"]) == (txid + 1, len(record["payload"])), f"{name}: {head}")
        txid, chain = head["txid"], xxh3_128_digest(chain + record["header"] + record["payload"])
        records.append({**head, "payload": record["payload"], "chain": chain})
        if head["attachment"] is not None:
            named.append(head["attachment"])
        if beside is not None:
            need(beside == f"{chain.hex()}.payload", f"{name} has a payload in {beside}")
            named.append({"name": beside, "size": len(record["payload"]), "digest": xxh3_128_digest(record["payload"])})
    need(unpacker.tell() == len(data), f"{name} has bytes behind its records")
    of = {
        "end": {"txid": txid, "chain": chain}, "records": len(records),
        "first_time_us": records[0]["time_us"] if records else 0,
        "last_time_us": records[-1]["time_us"] if records else 0,
        "payloads": sorted({r["payload_version"] for r in records if r["payload_version"]}),
        "attachments": named}
    need({key: said[key] for key in of} == of, f"{name} says {said}, and has {of}")
    need(said["history"]["branches"][-1]["txid"] <= said["after"]["txid"], f"{name} has records of another branch")
    return Piece(said, records)


def _files_of(piece: str) -> str:
    """The folder of what a piece's records name."""
    kind, whose, *_ = piece.split("/")
    return f"images/{whose}/files" if kind == "images" else f"attachments/{whose}"


def _number(name: str) -> int:
    return int(name.rpartition("/")[2])


def numbered(folder: str, number: int) -> str:
    return f"{folder}/{number // 10_000:06d}/{number:010d}"


# --- the catalog -----------------------------------------------------------------------------------------------------


def _check_catalog(taken: Repository) -> None:
    """Entries come to what checkpoints say; and `Entries` has each one."""
    names = {row[0] for row in taken.page.table("Entries")}
    checkpoints = {_number(name): said for name, said in taken.maps.items() if name.startswith("checkpoints/")}
    state: dict[str, Any] = {
        "number": 0, "store_id": None, "engine": "", "branches": [], "sessions": [], "images": [], "barred": [],
        "dropped": [], "leases": [], "marks": [], "proofs": []}
    for entry in taken.entries:
        need(entry["do"] in names, f"no entry {entry['do']!r} in the table")
        _apply(taken.page, state, entry)
        said = checkpoints.pop(entry["number"], state)
        need(said == state, f"checkpoint {entry['number']} is {said}, and should be {state}")
    need(not checkpoints, f"checkpoints {list(checkpoints)} of no entry")
    taken.state = state


def _apply(page: Page, state: dict[str, Any], entry: dict[str, Any]) -> None:
    """What an entry does to the state."""
    def without(what: str, **keys: Any) -> list[Any]:
        return [one for one in state[what] if any(one[key] != value for key, value in keys.items())]

    state["number"] = entry["number"]
    do = entry["do"]
    if do == "store":
        state["store_id"], state["engine"] = entry["id"], entry["engine"]
    elif do == "accept":
        state["branches"].append({"history": entry["history"], "runs": [], "units": [], "reached": []})
    elif do == "begin":
        state["sessions"].append(entry)
    elif do == "image":
        state["sessions"] = without("sessions", session=entry["session"])
        state["images"].append({"number": entry["number"], "image": _part_of(page, "image", entry)})
    elif do == "abort":
        state["sessions"] = without("sessions", session=entry["session"])
        state["barred"] = sorted([*state["barred"], entry["session"]])
    elif do == "run":
        log = branch_of(state, entry["branch"])
        log["runs"] = [run for run in log["runs"] if run["first"] < entry["slot"]]
        if log["runs"] and log["runs"][-1]["last"] is None and entry["ended"] is not None:
            log["runs"][-1] |= {"last": entry["slot"] - 1, "end": entry["ended"], "until_us": entry["until_us"]}
        log["runs"].append(_run(entry["slot"], entry["after"], None, None, 0))
    elif do == "merge":
        log, unit = branch_of(state, entry["branch"]), _part_of(page, "unit", entry)
        log["units"].append(unit)
        reached = {one["level"]: one["slot"] for one in log["reached"]} | {unit["level"]: unit["last"]}
        log["reached"] = [{"level": level, "slot": slot} for level, slot in reached.items()]
    elif do == "drop":
        _drop(state, entry)
    elif do == "lease":
        state["leases"].append(entry)
    elif do == "release":
        state["leases"] = without("leases", id=entry["id"])
    elif do == "mark":
        state["marks"].append(entry)
    elif do == "unmark":
        state["marks"] = without("marks", name=entry["name"])
    elif do == "proof":
        same = [n for n, one in enumerate(state["proofs"]) if (one["of"], one["kind"]) == (entry["of"], entry["kind"])]
        if same:
            state["proofs"][same[0]] = entry
        else:
            state["proofs"].append(entry)
    else:
        raise Misfit(f"no way to apply {do!r}")


def _drop(state: dict[str, Any], entry: dict[str, Any]) -> None:
    state["images"] = [one for one in state["images"] if one["image"]["session"] not in entry["images"]]
    state["proofs"] = [one for one in state["proofs"] if one["of"] not in entry["images"]]
    begun = min((one["number"] for one in state["sessions"]), default=entry["number"] + 1)
    state["dropped"] = [one for one in [*state["dropped"], *({"name": name, "number": entry["number"]}
                                                            for name in entry["packs"])] if one["number"] > begun]
    for log in state["branches"]:
        log["units"] = [unit for unit in log["units"] if unit["name"] not in entry["merged"]]
    for gone in entry["slots"]:
        log, first, last = branch_of(state, gone["branch"]), gone["first"], gone["last"]
        until = max((unit["complete_until_us"] for unit in log["units"] if unit["last"] < first), default=0)
        runs = []
        for run in log["runs"]:
            if (run["last"] is not None and run["last"] < first) or run["first"] > last:
                runs.append(run)
                continue
            if run["first"] < first:
                runs.append(_run(run["first"], run["after"], first - 1, gone["before"], until))
            if run["last"] is None or run["last"] > last:
                runs.append(_run(last + 1, gone["after"], run["last"], run["end"], run["until_us"]))
        log["runs"] = runs
        log["units"] = [unit for unit in log["units"] if unit["last"] < first or unit["first"] > last]


def _run(first: int, after: Any, last: int | None, end: Any, until_us: int) -> dict[str, Any]:
    return {"first": first, "after": after, "last": last, "end": end, "until_us": until_us}


def _part_of(page: Page, kind: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The keys of an entry that are those of an inner map."""
    return {row.name: entry[row.name] for row in page.maps[kind]}


def branch_of(state: dict[str, Any], branch: bytes) -> dict[str, Any]:
    [found] = [one for one in state["branches"] if one["history"]["branches"][-1]["id"] == branch]
    log: dict[str, Any] = found
    return log


# --- images and archived log -----------------------------------------------------------------------------------------


def image_files(taken: Repository, session: bytes) -> dict[str, bytes]:
    """The files of an image, by its root, leaves and blocks."""
    page, root = taken.page, taken.maps[f"images/{session.hex()}/root"]
    packs = {one["name"]: one for one in root["packs"]}
    need(all(one["header"] == taken.headers[name] and one["size"] == taken.sizes[name] for name, one in packs.items()),
         "packs that are others than the root says")
    need(all(one["content"] == sum(len(part.content) for part in taken.parts[name]) for name, one in packs.items()),
         "packs with other blocks than the root says")
    used = dict.fromkeys(packs, 0)
    files = {}
    for file in root["files"]:
        data = b""
        leaves = list(_placed(taken, file["leaves"], list(packs)))
        need(len(leaves) == -(-file["size"] // LEAF_BYTES), f"{file['name']} has {len(leaves)} leaves")
        for pack, leaf_part in leaves:
            leaf = page.unpack("leaf", leaf_part.content)
            named = {one["name"]: one["header"] for one in leaf["packs"]}
            need(all(header == taken.headers[name] for name, header in named.items()), "a leaf names other packs")
            blocks = list(_placed(taken, leaf["blocks"], list(named)))
            for name, part in {(pack, leaf_part), *blocks}:
                used[name] += len(part.content)
            contents = [part.content for _, part in blocks]
            need(all(len(content) == root["block_bytes"] for content in contents[:-1]), "a block of another size")
            data += b"".join(contents)
        need(len(data) == file["size"], f"{file['name']} has {len(data)} bytes")
        files[file["name"]] = data
    need({name: one["used"] for name, one in packs.items()} == used, "packs are used more or less than the root says")
    return files


def _placed(taken: Repository, places: dict[str, Any], packs: list[str]) -> Iterator[tuple[str, Part]]:
    """Blocks or leaves, each with the name of its pack."""
    columns = [places[name] for name in ("digests", "packs", "frames", "offsets", "lengths", "starts", "sizes")]
    for digest, number, frame, offset, length, start, size in zip(*columns, strict=True):
        found = taken.frames[packs[number]][frame]
        need((found.offset, found.length) == (offset, length), f"frame {frame} of {packs[number]} is elsewhere")
        part = Part(frame, start, found.content[start : start + size])
        need(part in taken.parts[packs[number]], f"{packs[number]} has no such block")
        need(hashlib.sha256(part.content).digest() == digest["sha256"], f"{packs[number]} has another block")
        yield packs[number], part


def image_log(taken: Repository, image: dict[str, Any]) -> list[Piece]:
    """The pieces of an image's own log. They go from its position to its end."""
    folder = f"images/{image['session'].hex()}/log"
    names = [numbered(folder, number) for number in range(1, image["log_objects"] + 1)]
    need([name for name in taken.pieces if name.startswith(f"{folder}/")] == names, f"other pieces in {folder}")
    found = [taken.pieces[name] for name in names]
    need(_joined(found, image["image_position"]) == image["end"], f"{folder} ends elsewhere")
    need(all(piece.said["writer"] == 0 and not piece.said["fence"] for piece in found), f"{folder} has a writer")
    need(sorted({v for piece in found for v in piece.said["payloads"]}) == image["payloads"], "other payloads")
    return found


def run_log(taken: Repository, log: dict[str, Any], run: dict[str, Any]) -> list[Piece]:
    """The pieces of a run of a branch's archived log, and units for those that are gone."""
    branch = log["history"]["branches"][-1]["id"].hex()
    found: list[Piece] = []
    slot = run["first"]
    while run["last"] is None or slot <= run["last"]:
        units = [unit for unit in log["units"] if unit["first"] == slot]
        unit = max(units, key=lambda unit: unit["last"], default=None)
        name = numbered(f"log/{branch}", slot) if unit is None else unit["name"]
        if unit is None and run["last"] is None and name not in taken.pieces:
            break
        found.append(taken.pieces[name])
        slot = slot + 1 if unit is None else unit["last"] + 1
    end = _joined(found, run["after"])
    need(run["end"] is None or end == run["end"], f"a run of {branch} ends elsewhere")
    return found


def _joined(pieces: list[Piece], after: dict[str, Any]) -> dict[str, Any]:
    """Where pieces end that follow one another."""
    for piece in pieces:
        need(piece.said["after"] == after, "pieces that do not follow one another")
        after = piece.said["end"]
    return after


def _check_units(taken: Repository, log: dict[str, Any]) -> None:
    branch = log["history"]["branches"][-1]["id"].hex()
    for unit in log["units"]:
        said = taken.pieces[unit["name"]].said
        level, first, last, _ = unit["name"].removeprefix(f"merged/{branch}/").split("-")
        need([int(level), int(first), int(last)] == [unit["level"], unit["first"], unit["last"]], f"{unit}")
        of = {key: said[key] for key in ("after", "end", "first_time_us", "last_time_us", "complete_until_us")}
        beside = sum(one["size"] for one in said["attachments"] if one["name"].endswith(".payload"))
        of |= {"bytes": taken.sizes[unit["name"]] + beside, "attachments": [one["name"] for one in said["attachments"]]}
        need({key: unit[key] for key in of} == of, f"{unit['name']} is said to be {unit}")


def _check_writers(taken: Repository, branch: bytes) -> None:
    """Writers are numbered from 1 up, and the first piece of each is a fence."""
    folder = f"writers/{branch.hex()}"
    writers = [name for name in taken.maps if name.startswith(f"{folder}/")]
    need(writers == [numbered(folder, n + 1) for n in range(len(writers))], f"the writers are {writers}")
    fences: set[int] = set()
    for name, piece in taken.pieces.items():
        if name.startswith(f"log/{branch.hex()}/"):
            writer = piece.said["writer"]
            need(writer in range(max(fences, default=1), len(writers) + 1), f"{name} is of writer {writer}")
            need(not piece.said["fence"] or (writer not in fences and not piece.records), f"{name} is a fence")
            fences.add(writer)


def attachment(taken: Repository, folder: str, reference: dict[str, Any]) -> dict[str, Any]:
    """An attachment in a folder, by a record's reference."""
    data = b"".join(_parts(taken, folder, reference["name"], reference["size"]))
    need((len(data), xxh3_128_digest(data)) == (reference["size"], reference["digest"]), f"{reference['name']}")
    return taken.page.whole("attachment", data)


def _parts(taken: Repository, folder: str, name: str, size: int) -> list[bytes]:
    parts = [taken.attached[numbered(f"{folder}/{name}", number)] for number in range(1, -(-size // PART_BYTES) + 1)]
    need(all(len(part) == PART_BYTES for part in parts[:-1]), "a part of another size")
    return parts


def check_repository(taken: Repository) -> Directory:
    """All that counts is there and right. Returns what a restore to the end of the newest image's branch starts from:
    the image as a state, and the log after it as that of a backup."""
    state = taken.state
    files, logs, records = {}, {}, []
    attachments: dict[str, dict[str, Any]] = {}
    for one in state["images"]:
        image = one["image"]
        root = taken.maps[f"images/{image['session'].hex()}/root"]
        need((root["engine"], root["image"]) == (state["engine"], image), "a root says another image than the catalog")
        files[one["number"]] = image_files(taken, image["session"])
        logs[one["number"]] = image_log(taken, image)
        need(sum(map(len, files[one["number"]].values())) == image["bytes"], "an image of another size")
        folder = f"images/{image['session'].hex()}/files"
        stored = sum(map(len, (b"".join(_raw(taken, folder)), b"".join(_raw(taken, folder.replace("/files", "/log"))))))
        need(stored == image["log_bytes"], "the image's log has another size")
        for piece in logs[one["number"]]:
            attachments |= {ref["name"]: attachment(taken, folder, ref) for ref in piece.said["attachments"]
                            if not ref["name"].endswith(".payload")}
    for log in state["branches"]:
        branch = log["history"]["branches"][-1]["id"]
        _check_units(taken, log)
        _check_writers(taken, branch)
        for run in log["runs"]:
            for piece in run_log(taken, log, run):
                attachments |= {ref["name"]: attachment(taken, f"attachments/{branch.hex()}", ref)
                                for ref in piece.said["attachments"] if not ref["name"].endswith(".payload")}
    newest = state["images"][-1]
    image = newest["image"]
    records = [record for piece in logs[newest["number"]] for record in piece.records]
    branch = branch_of(state, image["history"]["branches"][-1]["id"])
    for piece in run_log(taken, branch, branch["runs"][-1]) if branch["runs"] else ():
        records += [record for record in piece.records if record["txid"] > image["end"]["txid"]]
    need([record["txid"] for record in records]
         == list(range(image["image_position"]["txid"] + 1, image["image_position"]["txid"] + 1 + len(records))),
         "the log has a gap")
    made = Directory(taken.page, taken.root, state["engine"], attachments=attachments,
                     raw_state=files[newest["number"]])
    made.documents = {"STORE": {"store_id": state["store_id"]},
                      "MANIFEST": {"p0": image["image_position"], "settled": False}}
    made.segments = [Segment({"base": image["image_position"]}, records=records)]
    take_state(made)
    return made


def _raw(taken: Repository, folder: str) -> Iterator[bytes]:
    for path in sorted((taken.root / folder).rglob("*")):
        if path.is_file():
            yield path.read_bytes()
