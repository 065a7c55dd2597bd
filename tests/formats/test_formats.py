"""`docs/formats.md` is right: real files are taken apart by its tables alone, to the last byte; a wrong table fails.

The stores, backups, repositories and answers here are made with the public API. What reads them (`format_page`,
`format_files`, `format_lmdb`, `format_graph`, `format_repository`) imports nothing of Holdfast. What states and
transactions come to by the page is compared with what views show.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import format_files as ff
import format_graph as fg
import format_repository as fr
import pytest
from format_lmdb import Lmdb
from format_page import PAGE, Misfit, Page, need
from format_world import SECRETS, World, make_world
from xxhash import xxh3_128_hexdigest

from holdfast.engine import errors
from holdfast.engine.source.http.wire import error_to_wire
from holdfast.engine.testing import current_profile


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    with pytest.MonkeyPatch.context() as patch:
        return make_world(tmp_path_factory.mktemp("formats"), patch)


TARGETS = {name: f"{name} target" for name in ("graph", "memory", "records", "sqlite", "rocksdb")}
"""The stores that a target was backed up from: they keep log for it."""

READERS: dict[str, Callable[[ff.Directory], Any]] = {
    "graph": fg.graph_content, "memory": ff.memory_content, "records": ff.records_content,
    "sqlite": ff.pairs_content, "rocksdb": ff.pairs_content}


def plain(value: Any) -> Any:
    """Timestamps as datetimes, as views have them."""
    if type(value).__name__ == "Timestamp":
        return datetime.fromtimestamp(0, UTC) + timedelta(seconds=value.seconds, microseconds=value.nanoseconds // 1000)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value


def check_directory(page: Page, world: World, name: str) -> ff.Directory:
    """Every file of a store or target, and what it holds in the end."""
    taken = ff.take_directory(page, world.path(name))
    ff.take_state(taken)
    content = plain(READERS[taken.engine](taken))
    need(content == world.content[name], f"{name} holds something else than its view showed")
    if name in TARGETS:
        target = ff.take_directory(page, world.path(TARGETS[name])).documents["MANIFEST"]["target_id"].hex()
        slots = {c["id"]: c["name"] for c in taken.documents["CONSUMERS"]["consumers"]}
        need(TARGETS[name] in slots.get(target, ""), f"the slots are {slots}")
    if taken.engine == "graph" and taken.segments[0].header["base"]["txid"] == 0:
        need(plain(fg.logged_graph(taken)) == content, f"{name}: the log comes to something else than the state")
    manifest = taken.documents.get("MANIFEST")
    if manifest is not None and not manifest["settled"]:
        ff.check_image(taken.raw_state, manifest["files"], manifest["chunk_bytes"])
        need(manifest["p0"] == taken.segments[0].header["base"], "the log does not begin at p0")
        need(all(lmdb.whole for lmdb in taken.state.values() if isinstance(lmdb, Lmdb)), "an image of other bytes too")
    return taken


def check_partial(page: Page, world: World) -> None:
    taken = ff.take_partial(page, world.path("memory partial"))
    copy = taken.documents["COPY"]
    ff.check_image(taken.raw_state, [{**f, "digests": copy["digests"].get(f["name"])} for f in copy["files"]],
                   copy["chunk_bytes"])


def check_repository(page: Page, world: World, name: str, secrets: tuple[bytes, ...]) -> fr.Repository:
    """Every object of a repository, and what a restore to its end comes to."""
    repository = fr.take_repository(page, world.path(name), secrets)
    taken = fr.check_repository(repository)
    need(plain(READERS[taken.engine](taken)) == world.content[name], f"{name} comes to something else than its store")
    return repository


def check_copy(page: Page, world: World) -> None:
    """A copy has the same objects, and says that it is one."""
    found = []
    for root in map(world.path, ("repository", "repository, copied")):
        names = {str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file()}
        found.append({name: path.read_bytes() for name, path in names.items()
                      if ff.holds(page, "a repository", name) != "random"})
    repository, copied = found
    need(copied.pop("copy-of").decode() == world.path("repository").as_uri(), "a copy of something else")
    need(copied == repository, "other objects")


def check_answers(page: Page, world: World) -> None:
    """Every answer is as its row of the resources says; the streams and errors too."""
    resources = {row[0].strip("`"): (row[1], row[2]) for row in page.table("Resources")}
    statuses = {name: row[1] for row in page.table("Errors") for name in row[0].split(", ")}
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.HoldfastError):
            made = error.__new__(error)
            errors.HoldfastError.__init__(made, "what is wrong")
            status, told = error_to_wire(made)
            name = page.value("error", told)["error"]
            need(statuses[name].startswith(str(status)) or statuses[name].endswith("any other"), f"{name} is {status}")
            need(name == error.__name__ or error.__name__ not in statuses, f"{error.__name__} is told as {name}")
    asked = set()
    for what, body, status, headers, data in world.answers.said:
        need(bytes.fromhex(headers["Holdfast-Instance"]), "no instance")
        kind = resources[what][1] if what in resources else "error"
        asked.add(what)
        if kind == "error":
            name = page.value("error", json.loads(data))["error"]
            need(what == f"error {name}" and statuses[name].startswith(str(status)), f"{what}: {status} {name}")
        else:
            expected = 201 if kind == "lease" else 206 if "Content-Range" in headers else 200
            need(status == expected, f"{what}: {status}")
            need((resources[what][0] != "") == (body is not None), f"{what}: a body")
            if body is not None:
                page.value(resources[what][0], body)
            if kind == "record stream":
                _check_stream(page, world, ff.take_stream(page, data))
            elif kind == "blocks":
                _check_blocks(page, body, data, (world.path("served") / "data.mdb").read_bytes())
            elif kind in page.objects:
                page.value(kind, json.loads(data))
            else:
                need(kind.startswith(("bytes", "text", "HTML")), f"no way to read {kind!r}")
        if kind != "record stream":
            need(headers["Holdfast-Digest"] == f"xxh3-128={xxh3_128_hexdigest(data)}", f"{what}: another digest")
    need({a for a in asked if not a.startswith("error")} == resources.keys(), "resources that were not asked for")
    for name, data in world.answers.runtime.items():
        kind = ff.holds(page, "runtime directory", name)
        entry = page.value(kind, json.loads(data))
        need(name == f"{entry['port']}-{entry['instance'].hex()}.json", f"{entry}")
        need(entry["path"] == str(world.path("graph")), f"{entry}")


def _check_blocks(page: Page, wish: dict[str, Any], data: bytes, image: bytes) -> None:
    """Every block that is not known is sent."""
    end = wish["offset"] + wish["length"]
    blocks = [image[at : min(at + wish["block_bytes"], end)] for at in range(wish["offset"], end, wish["block_bytes"])]
    found = page.whole("blocks", data, count=len(blocks))
    same = [wish["known"][n : n + 1] == [hashlib.sha256(block).digest()] for n, block in enumerate(blocks)]
    need(found["same"] == same, "others are known")
    need(found["data"] == b"".join(block for block, known in zip(blocks, same, strict=True) if not known),
         "other blocks")


def _check_stream(page: Page, world: World, frames: list[tuple[str, Any, Any]]) -> None:
    """The stream has the records of the log after the one asked from, and ends where it should."""
    log = ff.take_directory(page, world.path("graph")).records
    records = [(page.unpack("record header", header["header"]), header["chain"], payload)
               for name, header, payload in frames if name == "record"]
    expected = [({k: r[k] for k in head}, r["chain"], r["payload"])
                for r, (head, *_) in zip(log[2:], records, strict=False)]
    need(records == expected, "other records")
    names, last = [name for name, *_ in frames], frames[-1][2]
    if names[-1] == "end":
        need(names[:-1] == ["record"] * len(log[2:]), f"frames {names}")
        need(last == {"txid": log[-1]["txid"], "chain": log[-1]["chain"]}, "another end")
    else:
        need(names == ["record", *["heartbeat"] * (len(names) - 2), "error"] and len(names) > 2, f"frames {names}")
        need(last["error"] == "Damaged", f"{last}")


def check_served(page: Page, world: World) -> None:
    """An image as it is sent: no more than its pages."""
    lmdb = Lmdb(page, (world.path("served") / "data.mdb").read_bytes())
    need(lmdb.whole, "an image of other bytes too")
    _, identity, _ = page.document((world.path("graph") / "STORE").read_bytes())
    graph, _ = fg.graph_in_lmdb(page, lmdb, identity["store_id"])
    need(graph.nodes, "an empty image")


DIRECTORIES = ["graph, small", "graph, small and open", "graph", "graph, open", "graph target", "graph restored",
               "graph promoted", "memory", "memory, new", "memory, small", "memory, open", "memory target", "records",
               "records, open", "records target", "sqlite", "sqlite, open", "sqlite target", "rocksdb",
               "rocksdb, open", "rocksdb target"]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(PAGE.read_text())


@pytest.mark.parametrize("name", DIRECTORIES)
def test_every_byte_of_a_directory_is_as_the_page_says(page: Page, world: World, name: str) -> None:
    check_directory(page, world, name)


def test_a_copy_that_was_broken_off(page: Page, world: World) -> None:
    check_partial(page, world)


REPOSITORIES: dict[str, tuple[bytes, ...]] = {"repository": (), "repository, encrypted": SECRETS}
"""Each with its keys."""


@pytest.mark.parametrize("name", REPOSITORIES)
def test_every_byte_of_a_repository_is_as_the_page_says(page: Page, world: World, name: str) -> None:
    check_repository(page, world, name, REPOSITORIES[name])


def test_a_repository_with_records_and_attachments_of_many_frames(page: Page, world: World) -> None:
    taken = check_repository(page, world, "repository, large", ())
    records = [record for piece in taken.pieces.values() for record in piece.records]
    assert max(len(record["payload"]) for record in records) > 2 * fr.PART_BYTES
    assert [name[-1] for name in taken.attached] == ["1", "2", "3"]


def test_a_copy_of_a_repository(page: Page, world: World) -> None:
    check_copy(page, world)


def test_what_a_source_sends(page: Page, world: World) -> None:
    check_answers(page, world)
    check_served(page, world)


def test_every_row_of_the_page_counts(world: World) -> None:
    """Without any one row, and with any two fields or items in the other order, something no longer fits. How many are
    tried is the profile's."""
    text = PAGE.read_text()
    checks: list[Callable[[Page], object]] = [
        *(partial(check_directory, world=world, name=name) for name in
          ("memory, new", "memory, small", "records", "graph, small and open", "records target", "memory target")),
        partial(check_partial, world=world), partial(check_answers, world=world), partial(check_copy, world=world),
        *(partial(check_repository, world=world, name=name, secrets=secrets) for name, secrets in REPOSITORIES.items()),
        *(partial(check_directory, world=world, name=name) for name in
          ("graph promoted", "graph target", "graph, open", "sqlite, open", "rocksdb"))]
    uses = []
    for check in checks:
        page = Page(text)
        check(page)
        uses.append(page.used)
    survivors = []
    for heading, what, wrong in current_profile().some(_wrong_pages(text)):
        try:
            page = Page(wrong)
            for check, used in zip(checks, uses, strict=True):
                if heading in used or heading.partition(": ")[2] in used:
                    check(page)
        except (Misfit, LookupError, TypeError, ValueError, AttributeError):
            continue
        survivors.append(f"{heading}: {what}")
    assert survivors == []


def _wrong_pages(text: str) -> Iterator[tuple[str, str, str]]:
    """(heading, row, page) for each page that lacks a row, or has two fields or items in the other order."""
    lines = text.splitlines(keepends=True)
    heading, before = "", 0
    for at, line in enumerate(lines):
        if line.startswith("#"):
            heading, before = line.removeprefix("### ").strip() if line.startswith("### ") else "", 0
        elif heading and line.startswith("| ") and not line.startswith("| ---"):
            if before:
                yield heading, line.strip(), "".join([*lines[:at], *lines[at + 1 :]])
            if before > 1 and heading.startswith(("Layout", "Array")):
                swapped = [*lines[: at - 1], line, lines[at - 1], *lines[at + 1 :]]
                yield heading, f"{line.strip()} first", "".join(swapped)
            before += 1
