"""`holdfast import`: what files may hold, what is told of rows that are wrong, and that a failure leaves nothing."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from cli_rig import holdfast, told
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from holdfast import backup
from holdfast.backup.testing.fault_injection import DyingDisk, Killed
from holdfast.engine import GraphStore
from holdfast.engine.env import Env
from holdfast.engine.errors import BadRows, HoldfastError, InvalidInput, StoreExists, TargetInvalid
from holdfast.engine.interop import tables

EDGES = ":START_ID,:END_ID,:TYPE\n"


def written(directory: Path, **texts: str | bytes) -> dict[str, Path]:
    """CSV files by name."""
    paths = {}
    for name, text in texts.items():
        paths[name] = directory / f"{name}.csv"
        paths[name].write_bytes(text.encode() if isinstance(text, str) else text)
    return paths


def content(directory: Path) -> tuple[list[Any], list[Any]]:
    with GraphStore.open(directory, read_only=True) as store, store.snapshot() as view:
        assert list(view.check()) == []
        nodes = [view.node(node) for node in view.nodes()]
        return ([(node.labels, node.properties) for node in nodes],
                [(edge.source, edge.type, edge.target, edge.properties) for edge in view.all_edges()])


def imported(directory: Path, nodes: str | bytes, edges: str | bytes | None = None, **more: Any) -> Any:
    files = written(directory, nodes=nodes, **({} if edges is None else {"edges": edges}))
    backup.import_files(directory / "dest", nodes=[((), files["nodes"])],
                        edges=[((), files["edges"])] if edges is not None else [], **more)
    return content(directory / "dest")


def refused(directory: Path, nodes: str | bytes, edges: str | bytes | None = None) -> list[str]:
    """What is told of the rows, without the directory; nothing is left of the import."""
    with pytest.raises(BadRows) as caught:
        imported(directory, nodes, edges)
    assert not (directory / "dest").exists()
    return [finding.replace(f"{directory}/", "") for finding in caught.value.findings]


def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, people='id:ID,name,born:int,:LABEL\nada,"Lovelace, Ada",1815,Poet\nbob,Byron,,Poet;Lord\n',
            likes=":START_ID,:END_ID\nbob,ada\n")
    parquet.write_table(pa.table({":START_ID": ["ada", "bob"], ":END_ID": ["bob", "bob"], "since": [1824, None]}),
                        "knows.parquet")
    report = told("import", "dest", "--nodes", "Person=people.csv", "--edges", "KNOWS=knows.parquet", "--edges",
                  "LIKES=likes.csv")
    assert (report["nodes"], report["edges"], report["skipped"], report["problems"]) == (2, 3, 0, [])
    assert content(Path("dest")) == (
        [(("Person", "Poet"), {"id": "ada", "name": "Lovelace, Ada", "born": 1815}),
         (("Lord", "Person", "Poet"), {"id": "bob", "name": "Byron"})],
        [(1, "KNOWS", 2, {"since": 1824}), (2, "KNOWS", 2, {}), (2, "LIKES", 1, {})])
    assert "is not empty" in holdfast("import", "dest", "--nodes", "people.csv", code=4).stderr
    assert told("info", "dest")["store_id"] == report["store_id"]
    assert "2 nodes and 0 edges" in holdfast("import", "other", "--nodes", "people.csv").stdout


def test_rows_that_are_wrong_are_told_by_file_and_row_or_left_out(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, people=":ID,born:int\nada,1815\nbob,x\n\nada,1\n,2\neve\n", knows=EDGES + "ada,zed,KNOWS\n"
            "ada,ada,KNOWS\nada,ada,\n")
    command = ("import", "dest", "--nodes", "people.csv", "--edges", "knows.csv")
    failed = holdfast(*command, code=2)
    assert not Path("dest").exists()
    people = ["people.csv, row 3: born:int: 'x' is not a whole number", "people.csv, row 5: the id 'ada' is that of "
              "row 2 too", "people.csv, row 6: :ID: there is no id",
              "people.csv, row 7: it has 1 cells, and the header 2"]
    assert sorted(line.strip() for line in failed.stderr.splitlines() if ".csv" in line) == people
    assert "--skip-bad" in failed.stderr
    report = told(*command, "--skip-bad")
    assert (report["nodes"], report["edges"], report["skipped"]) == (1, 1, 6)
    assert sorted(report["problems"]) == [
        "knows.csv, row 2: no node has the id 'zed'", "knows.csv, row 4: :TYPE: there is no type", *people]
    assert content(Path("dest")) == ([((), {"born": 1815})], [(1, "KNOWS", 1, {})])


@pytest.mark.parametrize(("text", "found"), [
    (":ID,name\n1,\n", {}),
    (':ID,name\n1,""\n', {"name": ""}),
    (':ID,name\n1,"say ""a,b""\nand so on"\n', {"name": 'say "a,b"\nand so on'}),
    ("\ufeff:ID,name\r\n1,ü 🦀\r\n", {"name": "ü 🦀"}),
    (":ID,name\n1,last", {"name": "last"}),
    (":ID,x:long,y:int\n1,-9223372036854775808,+7\n", {"x": -(1 << 63), "y": 7}),
    (":ID,x:double,y:float\n1,1e3,-.5\n", {"x": 1000.0, "y": -0.5}),
    (":ID,x:boolean,y:boolean\n1,True,false\n", {"x": True, "y": False}),
    (":ID,t:datetime\n1,2026-03-01T12:00:00+01:00\n", {"t": datetime(2026, 3, 1, 11, tzinfo=UTC)}),
    (':ID,x:int[],y:string[],z:boolean[],e:int[]\n1,1;2,a;b,true;false,""\n',
     {"x": [1, 2], "y": ["a", "b"], "z": [True, False], "e": []}),
    (":ID,x:IGNORE,:IGNORE\n1,2,3\n", {}),
    (":ID,a:b:\n1,c\n", {"a:b": "c"}),
    ("x:ID(People),null\n007,null\n", {"x": "007", "null": "null"}),
])
def test_what_a_cell_may_be(text: str, found: dict[str, Any], tmp_path: Path) -> None:
    [(labels, properties)], _ = imported(tmp_path, text)
    assert labels == ()
    assert properties == found
    assert [*map(type, properties.values())] == [*map(type, found.values())]


@pytest.mark.parametrize(("header", "cell", "why"), [
    ("x:int", "1.5", "is not a whole number"), ("x:int", "0x1f", "is not a whole number"),
    ("x:int", "9223372036854775808", "does not fit in 64 bits"), ("x:int", "9" * 5000, "does not fit in 64 bits"),
    ("x:float", "1_0", "is not a number"), ("x:boolean", "yes", "is neither true nor false"),
    ("x:datetime", "2026-03-01T12:00:00", "has no time zone"), ("x:datetime", "noon", "is not a time"),
    ("x:int[]", "1;;2", "is not a whole number"), ("x", b"\xff\xfe", "is not UTF-8"),
    (":LABEL", "A" * 300, "the limit is 256"), ("x", "A" * (1 << 20), "the limit is 1,048,576"),
])
def test_a_cell_that_is_wrong(header: str, cell: str | bytes, why: str, tmp_path: Path) -> None:
    data = cell if isinstance(cell, bytes) else cell.encode()
    [finding] = refused(tmp_path, f":ID,{header}\n1,\n2,".encode() + data + b"\n3,\n")
    assert finding.startswith(f"nodes.csv, row 3: {header}: ")
    assert why in finding
    assert len(finding) < 250


@pytest.mark.parametrize(("nodes", "edges", "why"), [
    ("", None, "cannot be read as CSV"), (":ID,:ID\n1,2\n", None, "more than one column :ID"),
    ("x,x\n1,2\n", None, "the property x in more than one"), (":ID,x:money\n", None, "has the type 'money'"),
    (":START_ID,:END_ID\n1,1\n", None, "which only edges have"),
    (":ID\n1\n", ":START_ID,:TYPE\n1,K\n", "no column :END_ID"),
    (":ID\n1\n", ":START_ID,:END_ID\n1,1\n", "of which type"),
    (":ID\n1\n", EDGES.replace(":TYPE", ":LABEL"), "which only nodes"),
    (":ID,:LABEL(x)\n", None, "only ids have"), (":ID,\n1,2\n", None, "must not be empty"),
])
def test_a_file_that_cannot_be_used_at_all(nodes: str, edges: str | None, why: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=why):
        imported(tmp_path, nodes, edges)
    assert not (tmp_path / "dest").exists()


def test_files_that_are_not_there_or_not_whole(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "broken.csv.gz").write_bytes(gzip.compress(b":ID\n1\n" * 99)[:-20])
    for name in ("nowhere.csv", "nowhere.parquet", "broken.parquet", "broken.csv.gz", "."):
        with pytest.raises(InvalidInput, match="cannot be read"):
            backup.import_files(tmp_path / "dest", nodes=[((), tmp_path / name)])
    for delimiter in ("", "::", "é"):
        with pytest.raises(InvalidInput, match="not a delimiter"):
            backup.import_files(tmp_path / "dest", nodes=[], delimiter=delimiter)
    assert not (tmp_path / "dest").exists()


def test_other_delimiters_and_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(":ID\tname\n1\ta,b\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b":ID|name\n2|c\n"))
    backup.import_files(tmp_path / "one", nodes=[(("T",), tmp_path / "a.tsv")])
    backup.import_files(tmp_path / "two", nodes=[((), tmp_path / "b.csv.gz")], delimiter="|")
    assert content(tmp_path / "one") == ([(("T",), {"name": "a,b"})], [])
    assert content(tmp_path / "two") == ([((), {"name": "c"})], [])


def test_ids_are_of_their_space_and_compared_as_text(tmp_path: Path) -> None:
    files = written(tmp_path, people=":ID(Person)\n1\n2\n", films=":ID(Film)\n2\n1\n", none="name\nx\n")
    parquet.write_table(pa.table({":START_ID(Person)": pa.array([1, 2], pa.int32()), ":END_ID(Film)": ["1", "1"],
                                  ":TYPE": ["SAW", "MADE"]}), tmp_path / "saw.parquet")
    backup.import_files(tmp_path / "dest", nodes=[((), path) for path in files.values()],
                        edges=[((), tmp_path / "saw.parquet")])
    assert content(tmp_path / "dest")[1] == [(2, "MADE", 4, {}), (1, "SAW", 4, {})]
    with pytest.raises(BadRows) as caught:
        backup.import_files(tmp_path / "other", nodes=[((), files["people"])], edges=[((), tmp_path / "saw.parquet")])
    assert "no node in Film has the id '1'" in caught.value.findings[0]


def test_only_the_first_of_many_wrong_rows_are_named(tmp_path: Path) -> None:
    wrong = "".join(f"{n},x\n" for n in range(100))
    assert len(refused(tmp_path, f":ID,n:int\n{wrong}")) == tables.TOLD
    files = written(tmp_path, nodes=f":ID,n:int\n{wrong}")
    report = backup.import_files(tmp_path / "dest", nodes=[((), files["nodes"])], skip_bad=True)
    assert (report.nodes, report.skipped, len(report.problems)) == (0, 100, tables.TOLD)
    assert "and 80 more" in str(report)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)


@given(rows=st.lists(st.tuples(texts, st.one_of(st.none(), texts), st.one_of(st.none(), st.integers(-(1 << 63),
                                                                                                 (1 << 63) - 1))),
                     max_size=8, unique_by=lambda row: row[0]))
def test_any_text_comes_through(rows: list[tuple[str, str | None, int | None]]) -> None:
    def quoted(text: str | None) -> str:
        return "" if text is None else '"' + text.replace('"', '""') + '"'

    lines = [f"{quoted(key)},{quoted(text)},{'' if number is None else number}\n" for key, text, number in rows]
    with TemporaryDirectory() as name:
        nodes, _ = imported(Path(name), "key:ID,text,number:int\n" + "".join(lines))
    assert [properties for _, properties in nodes] == [
        {key: value for key, value in zip(("key", "text", "number"), row, strict=True) if value is not None}
        for row in rows]


def test_rows_keep_their_numbers_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.engine.interop import files

    monkeypatch.setattr(files, "_BLOCK_BYTES", 64)
    rows = [f"{n},{n}\n" for n in range(100)]
    rows[40], rows[70], rows[90] = "40\n", "\n", "90,x\n"
    assert sorted(refused(tmp_path, ":ID,n:int\n" + "".join(rows))) == [
        "nodes.csv, row 42: it has 1 cells, and the header 2", "nodes.csv, row 92: n:int: 'x' is not a whole number"]


def test_a_first_row_that_is_large(tmp_path: Path) -> None:
    large = "x" * 1_000_000
    [(_, properties)], _ = imported(tmp_path, f":ID,a,b,c\n1,{large},{large},{large}\n")
    assert {len(text) for text in properties.values()} == {1_000_000}


def test_where_a_store_may_be_made(tmp_path: Path) -> None:
    files = written(tmp_path, nodes=":ID\n1\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "empty").mkdir()
    nodes = [((), files["nodes"])]
    with pytest.raises(StoreExists):
        backup.import_files(tmp_path / "full", nodes=nodes)
    with pytest.raises(StoreExists):
        backup.import_files(files["nodes"], nodes=nodes)
    backup.import_files(tmp_path / "empty", nodes=nodes)
    with pytest.raises(TargetInvalid, match="lies in"):
        backup.import_files(tmp_path / "empty" / "inner", nodes=nodes)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_load_that_fails_leaves_nothing(tmp_path: Path) -> None:
    files = written(tmp_path, nodes=":ID,name\n" + "".join(f"{n},{'x' * 200}\n" for n in range(20_000)))
    for existing in (False, True):
        if existing:
            (tmp_path / "dest").mkdir()
        with pytest.raises(HoldfastError, match="map_size"):
            backup.import_files(tmp_path / "dest", nodes=[((), files["nodes"])], options={"map_size": 1 << 20})
        assert (tmp_path / "dest").exists() == existing
    assert {path.name for path in (tmp_path / "dest").iterdir()} <= {"LOCK"}
    backup.import_files(tmp_path / "dest", nodes=[((), files["nodes"])])
    assert len(content(tmp_path / "dest")[0]) == 20_000


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_import_that_is_killed_anywhere_leaves_a_whole_store_or_room_for_one(tmp_path: Path) -> None:
    files = written(tmp_path, nodes=":ID,name\n1,a\n2,b\n", edges=EDGES + "1,2,K\n2,1,L\n")
    given_files: dict[str, Any] = {"nodes": [((), files["nodes"])], "edges": [((), files["edges"])]}
    wholes = 0
    for n in count(1):
        dest = tmp_path / f"dest{n}"
        try:
            backup.import_files(dest, env=Env(files=DyingDisk(fail_at=n)), **given_files)
        except (Killed, HoldfastError):
            try:
                backup.import_files(dest, **given_files)
            except StoreExists:
                wholes += 1
        else:
            break
        assert len(content(dest)[0]) == 2
        assert len(content(dest)[1]) == 2
    assert n > 30
    assert wholes < 5


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    files = written(tmp_path, nodes=":ID,name\n" + "".join(f"{n},x\n" for n in range(5000)), edges=EDGES + "1,2,K\n")
    seen: dict[str, tuple[int, int]] = {}
    backup.import_files(tmp_path / "dest", nodes=[((), files["nodes"])], edges=[((), files["edges"])],
                        progress=lambda stage, done, total: seen.__setitem__(stage, (done, total)))
    size = sum(path.stat().st_size for path in files.values())
    assert seen == {"read": (size, size), "load": (5001, 5001)}
