"""LMDB's file with bytes that nobody wrote: found before LMDB follows them, when a value is read, or by its tally."""

from __future__ import annotations

import os
import random
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
from graph_rig import Rig

from holdfast.engine.builtin.graph import BulkLoad, GraphEngine, lmdbstate
from holdfast.engine.builtin.graph.pages import Meta, Tree, check_pages, newest_meta
from holdfast.engine.contract.engine import Context
from holdfast.engine.env import Files
from holdfast.engine.errors import Damaged, HoldfastError

PAGE = 4096
ROOT = 40
"""Where a tree, as a meta page or a database's entry has it, has its root page."""


def _made(directory: Path) -> Rig:
    rig = Rig(directory)
    tx = rig.engine.begin()
    tx.create_index("A", "k")
    rig.commit(tx)
    ends = np.random.default_rng(1).integers(0, 900, (6000, 2))
    rig.load(BulkLoad(nodes=({"k": i % 50, "name": "x" * (i % 90)} for i in range(900)), labels="A", edges=ends,
                      edge_type="X", relative=True))
    for _ in range(4):  # so that there are free pages
        tx = rig.engine.begin()
        for node in range(1, 200):
            tx.set_properties(node, k=7)
        rig.commit(tx)
        rig.checkpoint()
    rig.engine.close()
    return rig


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    rig = _made(tmp_path_factory.mktemp("whole"))
    return (rig.directory / "state" / "data.mdb").read_bytes()


class Spoilt:
    """A file's bytes, to be spoilt in place. `tree` finds a database's tree, `pages` the pages of one kind in it."""

    def __init__(self, data: bytes, meta: Meta) -> None:
        self.data = bytearray(data)
        self.slot = meta.txn % 2
        self.meta = meta

    def number(self, at: int, kind: str) -> int:
        return int(struct.unpack_from("<" + kind, self.data, at)[0])

    def put(self, at: int, kind: str, value: int) -> None:
        struct.pack_into("<" + kind, self.data, at, value)

    def nodes(self, page: int) -> list[int]:
        """Where the nodes of a page are."""
        first = page * PAGE
        count = (self.number(first + 12, "H") - 16) // 2
        return [first + self.number(first + 16 + 2 * i, "H") for i in range(count)]

    def tree(self, name: bytes) -> int:
        """Where the entry of a database has its tree."""
        for at in self.nodes(self.meta.main.root):
            size = self.number(at + 6, "H")
            if self.data[at + 8 : at + 8 + size] == name:
                return at + 8 + size
        raise KeyError(name)

    def root(self, name: bytes) -> int:
        return self.number(self.tree(name) + ROOT, "Q")

    def leaf(self, name: bytes) -> int:
        """A leaf page of a database, not the first."""
        page = self.root(name)
        while self.number(page * PAGE + 10, "H") == 1:
            at = self.nodes(page)[1]
            page = self.number(at, "H") | self.number(at + 2, "H") << 16
        return page

    def raise_key(self, node: int) -> None:
        """Make the key of a node, a number, a little higher."""
        (key,) = struct.unpack_from(">Q", self.data, node + 8)
        struct.pack_into(">Q", self.data, node + 8, key + 3)

    def swap(self, page: int) -> None:
        """Let the first two offsets of a page change places."""
        at = page * PAGE + 16
        self.data[at : at + 4] = self.data[at + 2 : at + 4] + self.data[at : at + 2]

    def copy(self, source: int, target: int) -> None:
        self.data[target * PAGE : (target + 1) * PAGE] = self.data[source * PAGE : (source + 1) * PAGE]


SPOILT: dict[str, Callable[[Spoilt], object]] = {
    "root beyond the file": lambda s: s.put(s.tree(b"edges") + ROOT, "Q", 1 << 40),
    "root of another tree": lambda s: s.put(s.tree(b"edges") + ROOT, "Q", s.root(b"nodes")),
    "root is a meta page": lambda s: s.put(s.tree(b"edges") + ROOT, "Q", 0),
    "depth": lambda s: s.put(s.tree(b"node_props") + 6, "H", 1),
    "endless depth": lambda s: s.put(s.tree(b"node_props") + 6, "H", 60_000),
    "count of entries": lambda s: s.put(s.tree(b"node_props") + 32, "Q", 3),
    "kind of database": lambda s: s.put(s.tree(b"node_props") + 4, "H", 4),
    "no longer a database": lambda s: s.put(s.nodes(s.meta.main.root)[0] + 4, "H", 0),
    "child is its own parent": lambda s: s.put(s.nodes(s.root(b"node_props"))[1], "H", s.root(b"node_props")),
    "child twice": lambda s: s.put(s.nodes(s.root(b"node_props"))[1], "H",
                                   s.number(s.nodes(s.root(b"node_props"))[2], "H")),
    "separator too low": lambda s: s.put(s.nodes(s.root(b"node_props"))[2] + 8, "Q", 0),
    "separator too high": lambda s: s.put(s.nodes(s.root(b"node_props"))[1] + 8, "Q", (1 << 64) - 1),
    "separator a little too high": lambda s: s.raise_key(s.nodes(s.root(b"node_props"))[1]),
    "page number": lambda s: s.put(s.leaf(b"node_props") * PAGE, "Q", 5),
    "page flags": lambda s: s.put(s.leaf(b"node_props") * PAGE + 10, "H", 1),
    "lower bound": lambda s: s.put(s.leaf(b"node_props") * PAGE + 12, "H", 60_000),
    "fewer nodes": lambda s: s.put(s.leaf(b"node_props") * PAGE + 12, "H",
                                   s.number(s.leaf(b"node_props") * PAGE + 12, "H") - 2),
    "no nodes": lambda s: s.put(s.leaf(b"node_props") * PAGE + 12, "H", 16),
    "upper bound": lambda s: s.put(s.leaf(b"node_props") * PAGE + 14, "H", 4094),
    "offset": lambda s: s.put(s.leaf(b"node_props") * PAGE + 16, "H", 4090),
    "odd offset": lambda s: s.put(s.leaf(b"node_props") * PAGE + 16, "H", 2001),
    "offset twice": lambda s: s.put(s.leaf(b"node_props") * PAGE + 16, "H",
                                    s.number(s.leaf(b"node_props") * PAGE + 18, "H")),
    "offsets swapped": lambda s: s.swap(s.leaf(b"node_props")),
    "size of a value": lambda s: s.put(s.nodes(s.leaf(b"node_props"))[3], "H", 30_000),
    "size of a key": lambda s: s.put(s.nodes(s.leaf(b"node_props"))[3] + 6, "H", 400),
    "key out of order": lambda s: s.put(s.nodes(s.leaf(b"node_props"))[3] + 8, "Q", (1 << 64) - 1),
    "value becomes a page": lambda s: s.put(s.nodes(s.leaf(b"node_props"))[3] + 4, "H", 1),
    "flags of a node": lambda s: s.put(s.nodes(s.leaf(b"node_props"))[3] + 4, "H", 9),
    "overflow page": lambda s: s.put(s.nodes(s.root(b"nodes"))[0] + 16, "Q", 1 << 30),
    "overflow page of another": lambda s: s.put(s.nodes(s.leaf(b"edges"))[0] + 16, "Q",
                                                s.number(s.nodes(s.leaf(b"edges"))[1] + 16, "Q")),
    "length of an overflow": lambda s: s.put(s.number(s.nodes(s.root(b"nodes"))[0] + 16, "Q") * PAGE + 12, "I", 0),
    "too long an overflow": lambda s: s.put(s.number(s.nodes(s.root(b"nodes"))[0] + 16, "Q") * PAGE + 12, "I", 1 << 20),
    "another page's bytes": lambda s: s.copy(s.root(b"nodes"), s.leaf(b"node_props")),
    "free page in use": lambda s: s.put(s.nodes(s.meta.free.root)[0] + 24, "Q", s.root(b"nodes")),
    "more free pages than there are": lambda s: s.put(s.nodes(s.meta.free.root)[0] + 16, "Q", 1 << 50),
    "free list's root": lambda s: s.put(s.slot * PAGE + 16 + 24 + ROOT, "Q", 1 << 50),
    "root of all": lambda s: s.put(s.slot * PAGE + 16 + 72 + ROOT, "Q", 3),
    "last page": lambda s: s.put(s.slot * PAGE + 16 + 120, "Q", 1 << 60),
    "last page too low": lambda s: s.put(s.slot * PAGE + 16 + 120, "Q", 8),
    "cut in half": lambda s: s.data.__delitem__(slice(s.meta.size // 2, None)),
    "zeros": lambda s: s.data.__setitem__(slice(s.leaf(b"adjacency") * PAGE, s.leaf(b"adjacency") * PAGE + PAGE),
                                          bytes(PAGE)),
}


@pytest.mark.parametrize("what", SPOILT)
def test_pages_that_do_not_hold_together_are_found(tmp_path: Path, whole: bytes, what: str) -> None:
    """LMDB itself is led by these: out of its map, which is the end of the process, or to other content."""
    path = tmp_path / "data.mdb"
    path.write_bytes(whole)
    file = Files().open(path)
    spoilt = Spoilt(whole, newest_meta(file))
    check_pages(file, spoilt.meta)
    file.close()
    SPOILT[what](spoilt)
    assert spoilt.data != whole
    path.write_bytes(spoilt.data)
    for read_only in (False, True):
        with pytest.raises(Damaged, match=r"data\.mdb"):
            GraphEngine.open(tmp_path, Context(), read_only=read_only)


def test_a_file_that_is_too_large_to_be_looked_at_when_it_is_opened(tmp_path: Path, whole: bytes,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """What hides an entry is found by whoever looks at all of them: no digest is made of the rest, and nothing is said
    to be consistent."""
    monkeypatch.setattr(lmdbstate, "CHECKED_AT_OPENING", 0)
    path = tmp_path / "data.mdb"
    path.write_bytes(whole)
    file = Files().open(path)
    spoilt = Spoilt(whole, newest_meta(file))
    file.close()
    SPOILT["separator a little too high"](spoilt)
    path.write_bytes(spoilt.data)
    engine = GraphEngine.open(tmp_path, Context())
    with engine.view() as view:
        assert any(not view.node(node).properties for node in view.nodes())  # a look-up has to believe it
        with pytest.raises(Damaged, match="wrong page"):
            view.digest()
        assert [finding for finding in view.check() if "wrong page" in finding]
    engine.close()


@pytest.mark.parametrize(("db", "read"), [
    ("node_props", lambda view: view.node(600)), ("nodes", lambda view: view.has_node(600)),
    ("edges", lambda view: view.edge(600)), ("adjacency", lambda view: view.neighbors(600)),
    ("adjacency", lambda view: view.degree(600)), ("adjacency", lambda view: view.expand([600])),
    ("adjacency", lambda view: view.edges(600)),
    ("adjacency", lambda view: view.neighbors_array(600, direction="both")),
    ("labels", lambda view: list(view.nodes("A"))), ("index", lambda view: list(view.nodes("A", k=7))),
    ("nodes", lambda view: list(view.nodes())), ("edges", lambda view: view.edge_arrays()),
])
def test_each_read_opens_the_seal_of_what_it_reads(tmp_path: Path, whole: bytes, db: str,
                                                   read: Callable[..., object]) -> None:
    """One flipped bit in a value was shown as if it had been written, a balance of 1,000 as 17,384."""
    (tmp_path / "data.mdb").write_bytes(whole)
    _flip_all(tmp_path, db)
    engine = GraphEngine.open(tmp_path, Context())
    with engine.view() as view:
        with pytest.raises(Damaged, match=f"of {db} does not match its checksum"):
            read(view)
        with pytest.raises(Damaged, match=f"of {db} does not match its checksum"):
            view.digest()
        assert list(view.check())
    engine.close()


@pytest.mark.parametrize("db", ["node_props", "nodes", "edges", "adjacency"])
def test_a_checkpoint_opens_the_seal_of_what_it_replaces(tmp_path: Path, db: str) -> None:
    """It would take a wrong seal out of the tally otherwise, and make new blocks of what is damaged."""
    rig = _made(tmp_path)
    _flip_all(rig.directory / "state", db)
    rig.engine = GraphEngine.open(rig.directory / "state", Context())
    tx = rig.engine.begin()
    with pytest.raises(Damaged, match=f"of {db} does not match its checksum"):
        if db == "node_props":
            tx.delete_node(tx.add_node("A"))
            tx.changes.set_props(600, b"")  # a transaction would have read them before
        else:
            tx.add_edge(tx.add_node("A"), "X", 600)
            tx.changes.set_edge(1 << 10, 600, 600, 4, True)
        rig.commit(tx)
        rig.checkpoint()
    rig.engine.close()


def _flip_all(state: Path, db: str) -> None:
    """Flip a bit in every value of a database."""
    env = lmdb.open(str(state), max_dbs=16, map_size=1 << 30)
    handle = env.open_db(db.encode())
    with env.begin(write=True) as txn:
        for key, value in list(txn.cursor(handle)):
            flipped = bytearray(value)
            flipped[len(value) // 3] ^= 4
            txn.put(key, bytes(flipped), db=handle)
    env.close()


def _outcome(state: Path, digest: bytes, read_only: bool) -> str:
    try:
        engine = GraphEngine.open(state, Context(), read_only=read_only)
        with engine.view() as view:
            same = view.digest() == digest
            return "found" if list(view.check()) else "same" if same else "other content"
    except HoldfastError:
        return "found"


@pytest.mark.parametrize("seed", range(2))
def test_whatever_becomes_of_the_bytes(tmp_path: Path, whole: bytes, seed: int) -> None:
    """Flipped bits, zeros, pages that changed places, and cuts: the same content, or an error of the kit's. Each is
    tried in a process of its own, which must end as it should."""
    rng = random.Random(seed)
    path = tmp_path / "data.mdb"
    path.write_bytes(whole)
    engine = GraphEngine.open(tmp_path, Context())
    with engine.view() as view:
        digest = view.digest()
    engine.close()
    used = len(whole.rstrip(b"\0")) // PAGE
    outcomes: set[str] = set()
    for _ in range(45):
        data = bytearray(whole)
        first, second = (rng.randrange(used) * PAGE for _ in range(2))
        kind = rng.randrange(5)
        if kind < 2:
            place = first + rng.choice((rng.randrange(64), rng.randrange(PAGE)))
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[first : first + PAGE] = bytes(PAGE)
        elif kind == 3:
            data[first : first + PAGE], data[second : second + PAGE] = (data[second : second + PAGE],
                                                                         data[first : first + PAGE])
        else:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            said = "an error of another kind"
            try:
                said = _outcome(tmp_path, digest, rng.random() < 0.5)
            finally:
                os.write(write, said.encode())
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            outcome = pipe.read()
        assert os.waitpid(child, 0)[1] == 0, "the process ended by a signal"
        outcomes.add(outcome)
        assert outcome in ("same", "found"), outcome
    assert outcomes == {"same", "found"}


def test_an_empty_tree_that_claims_entries(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.engine.close()
    path = rig.directory / "state" / "data.mdb"
    file = Files().open(path)
    spoilt = Spoilt(path.read_bytes(), newest_meta(file))
    assert Tree(*struct.unpack_from("<IHHQQQQQ", spoilt.data, spoilt.tree(b"nodes"))).root == (1 << 64) - 1
    file.close()
    spoilt.put(spoilt.tree(b"nodes") + 32, "Q", 1)
    path.write_bytes(spoilt.data)
    with pytest.raises(Damaged, match="no pages"):
        GraphEngine.open(rig.directory / "state", Context())
