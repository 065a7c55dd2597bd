"""What `test_formats` takes apart: stores, backups and answers, made with the public API, and what views show."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from backup_worlds import COMPACTING, NOT_COMPACTING
from says_member import Says

from holdfast import backup
from holdfast.backup.repository.copying import copy
from holdfast.backup.repository.expiring import Keep
from holdfast.backup.repository.keys import Key
from holdfast.backup.repository.repository import Repository
from holdfast.backup.testing.fault_injection import WatchedSource
from holdfast.engine.builtin.graph import BulkLoad, GraphEngine, GraphView
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.builtin.wrapped.overlay import PairsEngine
from holdfast.engine.builtin.wrapped.rocksdb import RocksEngine
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.env import REAL, Env
from holdfast.engine.errors import Damaged, SourceUnavailable
from holdfast.engine.source.http.limits import Limits
from holdfast.engine.source.http.service import BackupService
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.reader_leases import ReaderLease
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.quiet import SetClock

SETTINGS = Settings(segment_bytes=128 << 10, heartbeat_s=0)
SECRETS = b"the key of the encrypted repository", b"its key after the rotation"
VALUES: dict[str, Any] = {
    "yes": True, "no": False, "small": 7, "negative": -3, "byte": 200, "short": -30_000, "word": 1 << 31,
    "least": -(1 << 63), "most": (1 << 63) - 1, "float": 0.1, "whole": 2.0, "text": "Größe", "long": "x" * 300,
    "longer": "y" * 70_000, "raw": b"\0\xff", "rawer": b"r" * 300, "rawest": b"s" * 70_000,
    "then": datetime(1815, 12, 10, 12, 0, 0, 1, tzinfo=UTC), "now": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "fraction": datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC), "future": datetime(9999, 1, 1, tzinfo=UTC),
    "list": [1, "two", [3.0, {"four": b"4"}]], "many": list(range(20)), "none": [],
    "dict": {"b": 1, "a": {"d": [], "c": True}}, "wide": {str(i): i for i in range(20)},
}


@dataclass
class Answers:
    """What a source said over HTTP: (request as in the page's table, body sent, status, headers, answer)."""

    said: list[tuple[str, Any, int, dict[str, str], bytes]] = field(default_factory=list)
    runtime: dict[str, bytes] = field(default_factory=dict)
    port: int = 0


@dataclass
class World:
    """Everything that was made: directories by name, with the content that a view of each showed."""

    root: Path
    content: dict[str, Any] = field(default_factory=dict)
    answers: Answers = field(default_factory=Answers)

    def path(self, name: str) -> Path:
        return self.root / name

    def keep(self, name: str, copy: str, content: Any) -> None:
        """A copy of a directory as it is now, and what it should hold."""
        shutil.copytree(self.path(name), self.path(copy))
        self.content[copy] = content


def make_world(root: Path, patch: pytest.MonkeyPatch) -> World:
    """Everything there is to be taken apart, below `root`."""
    made = World(root)
    patch.setenv("XDG_RUNTIME_DIR", str(root))
    patch.setattr("holdfast.engine.source.http.server.Limits", partial(Limits, heartbeat_seconds=0.05))
    patch.setattr("holdfast.backup.repository.archiver.FAN_IN", 2)
    patch.setattr("holdfast.backup.repository.catalog.CHECKPOINT_EVERY", 2)
    _make_small(made)
    _make_graph(made)
    _make_memory(made)
    _make_records(made)
    _make_pairs(made, "sqlite", SqliteEngine)
    _make_pairs(made, "rocksdb", RocksEngine)
    with pytest.MonkeyPatch.context() as some:  # the records of the others lie in their pieces
        some.setattr("holdfast.backup.repository.pieces.LARGE_BYTES", 20)
        _make_repository(made)
    _make_encrypted_repository(made)
    _make_large_repository(made)
    return made


def _shown(view: GraphView) -> dict[str, Any]:
    nodes = {i: view.node(i) for i in view.nodes()}
    return {"nodes": {i: (n.labels, n.properties) for i, n in nodes.items()},
            "edges": {e.id: (e.source, e.type, e.target, e.properties) for e in view.all_edges()},
            "indexes": sorted(view.indexes())}


def _graph_content(store: Store[Any, GraphView]) -> dict[str, Any]:
    with store.snapshot() as view:
        assert list(view.check()) == []
        return _shown(view)


def _heartbeat(store: Store[Any, Any]) -> None:
    end = store.log.segments()[-1].size, store.log.complete_us
    store.group_commit.heartbeat()
    assert (store.log.segments()[-1].size, store.log.complete_us) != end


def _make_small(made: World) -> None:
    """A graph with little of most things, for what is done many times over."""
    with Store.open(made.path("graph, small"), GraphEngine, settings=SETTINGS) as store:
        with store.transaction() as tx:
            ada = tx.add_node("Person", name="Ada")
            tx.create_index("Person", "name")
        store.bulk(BulkLoad(nodes=[("Person", {"name": "Bob"}), ("Other", {})], edge_type="TO",
                            edges=[(ada, 2, {"w": 1})]))
        _heartbeat(store)
        store.checkpoint()
        with store.transaction() as tx:
            tx.set_properties(ada, name="Lovelace")
            tx.add_edge(2, "TO", ada, w=2)
            tx.create_index("Other", "name")
            tx.delete_node(3)
        made.keep("graph, small", "graph, small and open", _graph_content(store))
        made.content["graph, small"] = made.content["graph, small and open"]


def _fill_graph(store: Store[Any, Any]) -> None:
    with store.transaction() as tx:
        ada = tx.add_node("Person", "Author", properties=VALUES)
        bob = tx.add_node("Person", name="Bob", born=1815)
        heavy = tx.add_node("Heavy", list=[0] * 70_000, dict={str(i): i for i in range(70_000)})
        tx.add_edge(ada, "KNOWS", bob, since=1843, how={"z": 1, "a": [b"x"]})
    with store.transaction() as tx:
        tx.delete_node(heavy)
    with store.transaction() as tx:
        tx.create_index("Person", "name")
        tx.create_index("Person", "gone")
        tx.create_index("Author", "dict")
    with store.transaction() as tx:
        for i in range(5):
            tx.add_node("Person", name=f"p{i % 3}", gone=[i, {"b": 1, "a": 2}])
        tx.set_properties(bob, name="Robert")
        tx.set_properties(bob, name="Rob")
    store.bulk(BulkLoad(nodes=5000, labels=("Many", "More"), edge_type="NEXT", relative=True,
                        edges=np.array([(i, i + 1) for i in range(40)] + [(7, i) for i in range(600)])))
    store.checkpoint()
    store.bulk(BulkLoad(nodes=[("Person", {"name": "bulk"}), (("A", "B"), {}), ((), {"x": 1.5})], edge_type="KNOWS",
                        edges=[(ada, bob, {"w": 1}), (bob, ada)]))
    with store.transaction() as tx:
        hub = tx.add_node("Hub")
        edges = [tx.add_edge(hub, "TO", bob) for _ in range(300)]
        tx.drop_index("Person", "gone")
    store.checkpoint()
    with store.transaction() as tx:
        for edge in edges[:254:3]:
            tx.delete_edge(edge)
        tx.delete_node(ada + 4)
        tx.add_label(bob, "Author")
        tx.remove_property(bob, "born")
        tx.set_edge_properties(1, since=1844, more=True)
        tx.add_edge(bob, "KNOWS", bob)


def _make_graph(made: World) -> None:
    service = BackupService(online_backup_server="127.0.0.1:0", extension=Says("a", "primary", healthy=True))
    with Store.open(made.path("graph"), GraphEngine, settings=SETTINGS, plugins=[service]) as store:
        _fill_graph(store)
        _heartbeat(store)
        reader = ReaderLease(store.directory, "process 1", REAL)
        reader.advance(store.published.txid)
        made.keep("graph", "graph, open", _graph_content(store))
        reader.release()
        assert backup.run(store.backup_uri or "", made.path("graph target"), policy=NOT_COMPACTING).kind == "full"
        with store.transaction() as tx:
            tx.add_edge(tx.add_node("Late", name="late"), "KNOWS", 1)
            tx.delete_node(2, detach=True)
        _heartbeat(store)
        report = backup.run(store.backup_uri or "", made.path("graph target"), policy=NOT_COMPACTING)
        assert report.kind == "incremental"
        made.content["graph target"] = made.content["graph"] = _graph_content(store)
        _converse(store, made)
    backup.restore(made.path("graph target"), made.path("graph restored"), to_txid=8)
    with Store.open(made.path("graph restored"), GraphEngine, read_only=True) as store:
        made.content["graph restored"] = _graph_content(store)
    made.keep("graph target", "graph promoted", None)
    with Store.open(made.path("graph promoted"), GraphEngine, settings=SETTINGS) as store:
        with store.transaction() as tx:
            tx.add_node("New", name="twin")
        made.content["graph promoted"] = _graph_content(store)


def _make_memory(made: World) -> None:
    def content(store: Store[Any, Any]) -> dict[bytes, bytes]:
        with store.snapshot() as view:
            return dict(view.items())

    with Store.open(made.path("memory"), MemoryEngine, settings=SETTINGS) as store:
        made.keep("memory", "memory, new", {})
        for key in (b"a", b"b"):
            with store.transaction() as tx:
                tx.put(key, b"value of " + key)
        with store.transaction() as tx:
            tx.delete(b"a")
        made.keep("memory", "memory, small", content(store))
        for i in range(60):
            with store.transaction() as tx:
                tx.put(b"key %d" % i, bytes([i]) * 10_000)
                if i % 5 == 4:
                    tx.delete(b"key %d" % (i - 2))
        store.checkpoint()
        with store.transaction() as tx:
            tx.delete(b"key 1")
        for i in range(5):  # records that need a segment of their own size, and an image of two chunks
            with store.transaction() as tx:
                tx.put(b"large %d" % i, bytes([i]) * (1 << 20))
        made.keep("memory", "memory, open", content(store))
        target = made.path("memory target")
        backup.run(store, target)
        with store.transaction() as tx:
            tx.put(b"more", b"")
            tx.delete(b"large 1")
        report = backup.run(store, target, policy=COMPACTING)
        assert report.compacted
        backup.run(store, target, full=True)
        made.content["memory target"] = made.content["memory"] = content(store)

        store.checkpoint()

        def die(what: str) -> None:
            if what == "confirm":
                raise SourceUnavailable("gone")

        with pytest.raises(SourceUnavailable):
            backup.run(WatchedSource(LocalSource(store), die), made.path("memory partial"), engine=MemoryEngine)


def _make_records(made: World) -> None:
    def content(store: Store[Any, Any]) -> dict[int, bytes]:
        with store.snapshot() as view:
            assert list(view.check()) == []
            return dict(view.items())

    with Store.open(made.path("records"), RecordsEngine, settings=SETTINGS) as store:
        def write(i: int) -> None:
            with store.transaction() as tx:
                number = tx.insert(bytes([i + 1]) * (37 * i))
                tx.insert(b"short")
                if i % 3 == 2:
                    tx.update(number - 2, b"z" * 200)
                if i % 4 == 3:
                    tx.delete(number - 4)

        for i in range(20):
            write(i)
        store.checkpoint()
        write(20)
        made.keep("records", "records, open", content(store))

        def busy(what: str) -> None:
            if what == "image":
                write(21)
                store.checkpoint()

        backup.run(WatchedSource(LocalSource(store), busy), made.path("records target"), engine=RecordsEngine)
        made.content["records target"] = content(store)
        with store.transaction() as tx:
            tx.delete(1)
        _heartbeat(store)
        made.content["records"] = content(store)
    with Store.open(made.path("records"), RecordsEngine, settings=SETTINGS, env=Env(clock=SetClock())) as store:
        with store.transaction() as tx:  # by a clock that has gone back to long before the heartbeat
            tx.insert(b"late")
        made.content["records"] = content(store)


def _make_pairs(made: World, name: str, engine: type[PairsEngine]) -> None:
    def content(store: Store[Any, Any]) -> dict[bytes, bytes]:
        with store.snapshot() as view:
            assert list(view.check()) == []
            return dict(view.items())

    with Store.open(made.path(name), engine, settings=SETTINGS) as store:
        for i in range(30):
            with store.transaction() as tx:
                tx.put(b"key %d" % i, bytes([i]) * 37 * i)
                if i % 5 == 4:
                    tx.delete(b"key %d" % (i - 2))
            if i in (10, 20):
                store.checkpoint()
        made.keep(name, f"{name}, open", content(store))
        backup.run(store, made.path(f"{name} target"), engine=engine)
        with store.transaction() as tx:
            tx.put(b"more", b"")
            tx.delete(b"key 1")
        backup.run(store, made.path(f"{name} target"), engine=engine, policy=NOT_COMPACTING)
        made.content[f"{name} target"] = made.content[name] = content(store)


def _make_repository(made: World) -> None:
    """A graph's, with attachments in an image's own log and in the archive; and a copy of it."""
    with (Repository.init(made.path("repository")) as repository,
          Store.open(made.path("repository, its store"), GraphEngine, settings=SETTINGS) as store):
        def load(name: str) -> None:
            store.bulk(BulkLoad(nodes=[("Person", {"name": name})], edge_type="TO", edges=[(1, 1, {"w": 1})]))

        def busy(what: str) -> None:
            if what == "confirm":
                load("Bob")

        with store.transaction() as tx:
            tx.add_node("Person", name="Ada")
            tx.create_index("Person", "name")
        store.checkpoint()
        repository.backup(WatchedSource(LocalSource(store), busy))
        archiver = repository.archiver(LocalSource(store))
        for name in ("Carl", "Dora"):
            load(name)
            archiver.step()
        with store.transaction() as tx:
            tx.add_node("Person", name="Emil")
        archiver.step()
        archiver.close()
        repository.archiver(LocalSource(store)).close()
        made.content["repository"] = _graph_content(store)
    copy(made.path("repository"), made.path("repository, copied"))


def _make_encrypted_repository(made: World) -> None:
    """Of a store whose images move, with two branches, a gap, a run that died, every entry there is, and a new key."""
    settings = Settings(segment_bytes=128 << 10, heartbeat_s=0, keep_logs="1 transactions")
    url = made.path("repository, encrypted")

    def write(store: Store[Any, Any], count: int = 1, size: int = 100) -> None:
        for i in range(count):
            with store.transaction() as tx:
                tx.insert(bytes([i + 1]) * size)

    def die(what: str) -> None:
        if what == "confirm":
            raise SourceUnavailable("gone")

    with (Repository.init(url, key=Key(SECRETS[0])) as repository,
          Store.open(made.path("its store"), RecordsEngine, settings=settings) as store):
        def busy(what: str) -> None:
            if what == "confirm":
                write(store)
                store.checkpoint()

        def archived(slots: int) -> None:
            archiver = repository.archiver(LocalSource(store))
            for _ in range(slots):
                write(store)
                archiver.step()
            archiver.close()

        write(store, 3)
        with pytest.raises(SourceUnavailable):
            repository.backup(WatchedSource(LocalSource(store), die))
        repository.backup(WatchedSource(LocalSource(store), busy))
        archived(4)
        repository.mark("kept", keep=True)
        repository.mark("not kept")
        repository.unmark("not kept")
        repository.rotate(Key(SECRETS[1]))
        LocalSource(store).drop(repository.id)
        write(store, 60, size=6000)
        store.checkpoint()
        store.prune()
        repository.backup(store)
        archived(5)
        repository.verify()
        repository.rehearse()
        repository.synthesize()
        repository.restore(made.path("repository, restored"))
        write(store, 20, size=3000)
        store.checkpoint()
        repository.backup(store, digest=True)
        repository.unmark("kept")
        repository.expire(Keep(points="none"))
        repository.expire(Keep(points="none", abandoned="0 minutes"))
    with (Repository.open(url, key=Key(SECRETS[1])) as repository,
          Store.open(made.path("repository, restored"), RecordsEngine, settings=SETTINGS) as store):
        write(store)
        repository.backup(store, accept_branch=store.history.branch.id.hex())
        archiver = repository.archiver(LocalSource(store))
        write(store)
        archiver.step()
        archiver.close()
        with store.snapshot() as view:
            made.content["repository, encrypted"] = dict(view.items())


def _make_large_repository(made: World) -> None:
    """With a piece of several frames, and an attachment of several parts."""
    with (Repository.init(made.path("repository, large")) as repository,
          Store.open(made.path("large store"), GraphEngine, settings=SETTINGS) as store):
        with store.transaction() as tx:
            tx.add_node("Person", name="Ada")
        repository.backup(store)
        archiver = repository.archiver(LocalSource(store))
        with store.transaction() as tx:
            for _ in range(9):
                tx.add_node("Large", value=b"x" * 1_000_000)
        store.bulk(BulkLoad(nodes=[("Large", {"value": b"y" * 1_000_000})] * 9, edge_type="TO", edges=[(1, 1, {})]))
        archiver.step()
        archiver.close()
        made.content["repository, large"] = _graph_content(store)


def _converse(store: Store[Any, Any], made: World) -> None:
    """Ask for every resource of the service."""
    answers = made.answers
    runtime = made.root / "holdfast"
    answers.runtime = {p.name: p.read_bytes() for p in runtime.iterdir()}
    assert store.backup_uri is not None
    answers.port = int(store.backup_uri.rpartition(":")[2])
    entry = json.loads(answers.runtime[f"{answers.port}-{store.instance}.json"])

    def answered(answer: Any) -> bytes:
        """All of an answer. In a stream that waits, the first heartbeat lets it go on."""
        data = b""
        while more := answer.read1():
            data += more
            if data.endswith(bytes([3, *[0] * 11])):
                waited.set()
        return data

    def ask(what: str, path: str, body: Any = None, token: str = entry["token"], **headers: str) -> Any:
        method = "GET" if what.startswith("error") and body is None else what.split()[0].replace("error", "POST")
        request = urllib.request.Request(f"http://127.0.0.1:{answers.port}{path}", method=method,
                                         data=None if body is None else
                                         msgpack.packb(body) if "/blocks/" in path else json.dumps(body).encode(),
                                         headers={"Authorization": f"Bearer {token}", **headers})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                got = answer.status, dict(answer.headers), answered(answer)
        except urllib.error.HTTPError as error:
            got = error.code, dict(error.headers), error.read()
        answers.said.append((what, body, *got))
        return json.loads(got[2]) if "json" in got[1]["Content-Type"] else got[2]

    ask("GET /v1/health", "/v1/health", token="none")
    told = ask("GET /v1/store", "/v1/store")
    place = ask("GET /v1/store/chain/{txid}", "/v1/store/chain/2")
    lease = ask("POST /v1/leases", "/v1/leases", {"owner": "test", "image": True, "ttl": 30, "after": None})
    log = ask("POST /v1/leases", "/v1/leases", {"owner": "test", "after": place})
    ask("GET /v1/leases", "/v1/leases")
    ask("PUT /v1/leases/{id}", f"/v1/leases/{lease['id']}")
    image = ask("GET /v1/leases/{id}/image/{name}", f"/v1/leases/{lease['id']}/image/{lease['files'][0]['name']}")
    part = ask("GET /v1/leases/{id}/image/{name}", f"/v1/leases/{lease['id']}/image/data.mdb", Range="bytes=100-8299")
    assert part == image[100:8300]
    known = [hashlib.sha256(image[at : at + 8192]).digest() for at in range(0, 8192 * 3, 8192)]
    for digests in ([], [b"", known[1]], known):
        ask("POST /v1/leases/{id}/blocks/{name}", f"/v1/leases/{lease['id']}/blocks/data.mdb",
            {"offset": 0, "length": 20_000, "block_bytes": 8192, "known": digests})
    made.path("served").mkdir()
    (made.path("served") / lease["files"][0]["name"]).write_bytes(image)
    ask("POST /v1/leases/{id}/confirm", f"/v1/leases/{lease['id']}/confirm")
    ask("POST /v1/leases/{id}/content", f"/v1/leases/{lease['id']}/content")
    for name in (p.name for p in (made.path("graph") / "gen-000001/log/attachments").iterdir()):
        ask("GET /v1/leases/{id}/attachments/{name}", f"/v1/leases/{lease['id']}/attachments/{name}")
    stream = f"/v1/leases/{log['id']}/log?after={place['txid']}&chain={place['chain']}"
    ask("GET /v1/leases/{id}/log?after={txid}&chain={chain}&upto={txid}", f"{stream}&upto={told['published']['txid']}")
    waited = threading.Event()

    def failing(source: Any, lease_id: str, after: Any, upto: int) -> Iterator[Any]:
        yield next(store.log.read(after.txid))
        assert waited.wait(60)
        raise Damaged("a record is not what it was")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.engine.source.http.routes._BATCH_RECORDS", 1)
        patch.setattr("holdfast.engine.source.local.LocalSource.read_log", failing)
        ask("GET /v1/leases/{id}/log?after={txid}&chain={chain}&upto={txid}", f"{stream}&upto=4")
    ask("PUT /v1/consumers/{id}", "/v1/consumers/00ff", {"name": "test", "position": place})
    ask("GET /v1/consumers", "/v1/consumers")
    ask("DELETE /v1/consumers/{id}", "/v1/consumers/00ff")
    ask("GET /v1/metrics", "/v1/metrics")
    ask("GET /", "/")
    ask("DELETE /v1/leases/{id}", f"/v1/leases/{lease['id']}")
    ask("error InvalidInput", "/v1/leases", {"owner": "test", "image": True, "ttl": -1})
    ask("error InvalidInput", "/v1/store/chain/many")
    ask("error NotAuthorized", "/v1/store", token="none")
    ask("error SourceRefused", "/v1/store", Host="elsewhere.example")
    ask("error AheadOfSource", "/v1/store/chain/1000000")
    ask("error LeaseExpired", f"/v1/leases/{lease['id']}/image/data.mdb")
