"""What the graph engine's state and transactions come to, by the page: a graph in tokens, and in names.

From LMDB, what is derived (adjacency lists, bitmaps, index rows) is compared with what it derives from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgpack
from format_files import Directory, after, engine_row
from format_lmdb import Lmdb
from format_page import Misfit, Page, need
from xxhash import xxh3_64_digest, xxh3_64_intdigest

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

        def labels(token: int) -> tuple[str, ...]:
            return tuple(sorted(name(label, "l") for label in name(token, "s")))

        return {
            "nodes": {i: (labels(s), properties(self.node_properties.get(i, {}))) for i, s in self.nodes.items()},
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
    for cells, packed in ((graph.node_properties, load["node_properties"]),
                          (graph.edge_properties, load["edge_properties"])):
        ids = []
        for one in page.several("property cell", packed):
            ids.append(one["id"])
            cells[one["id"]] = property_map(page, one["properties"])
        need(ids == sorted(set(ids)), "property cells out of order")
    graph.marks = payload["marks"]


def graph_in_lmdb(page: Page, lmdb: Lmdb, store_id: bytes) -> tuple[Graph, dict[str, Any]]:
    """The graph that the databases hold, and its position; what is derived is compared with what it derives from."""
    rows = {row[0]: (row[1], row[2]) for row in page.table("Databases")}
    tags = {row[0]: int(row[3]) for row in page.table("Databases") if row[3]}
    need(rows.keys() == lmdb.databases.keys(), f"databases {sorted(lmdb.databases)}")
    unsealed = {name: [_unsealed(tags[name], *pair) for pair in pairs] if name in tags else pairs
                for name, pairs in lmdb.databases.items()}
    taken = {name: [(_cell(page, rows[name][0], key), _cell(page, rows[name][1], value)) for key, value in pairs]
             for name, pairs in unsealed.items()}
    need(len(taken["meta"]) == 1, "more than one state")
    state = taken["meta"][0][1]
    need(state["store_id"] == store_id, "the state of another store")
    tallies = {t["database"]: (t["count"], t["total"]) for t in state["tallies"]}
    sums = {name: (len(pairs), sum(int.from_bytes(value[-8:], "big") for _, value in pairs) % (1 << 64))
            for name, pairs in lmdb.databases.items() if name in tags}
    need(tallies == sums, f"tallies {tallies}, where {sums} are there")
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


def _unsealed(tag: int, key: bytes, sealed: bytes) -> tuple[bytes, bytes]:
    value, seal = sealed[:-8], sealed[-8:]
    need(seal == xxh3_64_digest(value, seed=xxh3_64_intdigest(key, seed=tag)), f"the seal of {key!r}")
    return key, value


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
    graph, position = graph_in_lmdb(taken.page, taken.state["data.mdb"], taken.documents["STORE"]["store_id"])
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
