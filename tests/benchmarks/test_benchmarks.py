"""That the benchmarks and the demo work and would notice; never how fast anything is."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pytest

from holdfast.benchmarks import __main__ as command
from holdfast.benchmarks import demo, demo_writer, graphs, harness, workload_engine
from holdfast.benchmarks.harness import Bench, Line, Samples, Scale
from holdfast.benchmarks.limits import LeaderLoop, PlainLoop, SyncerLoop, Waiter, copy_and_sync, pipelined
from holdfast.benchmarks.report import html, saved, text
from holdfast.benchmarks.report.saved import Run
from holdfast.benchmarks.terminal import Terminal
from holdfast.benchmarks.traffic import many_threads
from holdfast.benchmarks.workload_cluster import lags

TINY = Scale(rounds=1, seconds=0.05, threads=3, bulk=("soc-Epinions1",), graph_edges=2000, load_rounds=1,
             overlay_edges=300, window=0.2, windows=1, rate=200, incremental=20, recovery=200, large_edges=3000,
             kills=1, switches=1, committing=(1, 3), days=2, churn=50, peers=("SQLite",), load_curve=(200, 400),
             growing_edges=(500, 1000), growing_segments=(3, 5))


def test_every_workload_gives_lines_that_can_be_shown_and_saved(tmp_path: Path) -> None:
    said: list[str] = []
    results, failed = command.run(TINY, tmp_path, list(command.WORKLOADS), said.append)
    assert not failed, said[-1]
    assert not list(tmp_path.iterdir())
    assert list(results) == list(command.WORKLOADS)
    assert all(results.values())
    shown = io.StringIO()
    run = Run(machine=harness.machine(tmp_path), scale=saved.plain(TINY), seconds=1.0, results=results)
    text.show(run, shown)
    for word in ("1 thread", "3 threads", "pipelined", "SQLite", "bulk load", "one hop", "two hops", "a transaction",
                 "properties of a node", "breadth-first", "while as many edges come as go", "opening", "full backup",
                 "cp + fsync", "memory", "p50", "p99.9", "incremental", "recovery", "replay", "ack=quorum", "ack=all",
                 "ack=local", "replication lag", "fail-over", "switch-over", "seeding", "the nodes of a label",
                 "commits of 100,000 bytes", "as a command", "beside checkpoints", "beside restores",
                 "an opening after SIGKILL", "verify of a backup", "restore of a backup"):
        assert word in shown.getvalue(), word
    saved.save(tmp_path / "figures.json", run)
    assert saved.load(tmp_path / "figures.json") == run
    page = html.page(run)
    for name, found in results.items():
        for one in found:
            assert escape(one.workload) in page, name
            assert not isinstance(one, Line) or one.unit == "MiB" or one.figure.median > 0, one


def test_lag_counts_each_transaction_from_its_sync_to_when_it_is_shown() -> None:
    durable = [(5, 10.0), (7, 10.5), (9, 11.0)]  # one sync of 5 (and earlier ones), one of 6 and 7, one of 8 and 9
    published = [(4, 9.0), (6, 10.75), (8, 11.25)]  # 5 and 6 are shown together; 9 is not shown yet
    assert lags(durable, published) == [750.0, 250.0, 750.0, 250.0]


def test_ratios_are_taken_within_rounds() -> None:
    line = Line(workload="w", figure=Samples((10.0, 100.0, 30.0)), unit="x", peer="p",
                peer_figure=Samples((5.0, 50.0, 30.0)), target=1.5)
    assert line.ratio == Samples((2.0, 2.0, 1.0))
    assert line.met is True


@pytest.mark.parametrize(("better", "target", "met"), [("more", 3.0, True), ("more", 3.1, False), ("less", 3.0, True),
                                                       ("less", 2.9, False)])
def test_a_figure_without_peer_is_judged_itself(better: str, target: float, met: bool) -> None:
    line = Line(workload="w", figure=Samples((3.0,)), unit="x", target=target, better=better)  # type: ignore[arg-type]
    assert line.met is met


def test_interleaving_rotates_and_does_not_count_the_warm_up(tmp_path: Path) -> None:
    order: list[str] = []

    def contestant(name: str, figure: float) -> float:
        order.append(name)
        return figure

    bench = Bench(tmp_path, TINY, lambda text: None)
    figures = bench.interleave("x", {"a": lambda: contestant("a", 1), "b": lambda: contestant("b", 2)}, rounds=2)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert figures == {"a": Samples((1, 1)), "b": Samples((2, 2))}


def test_the_limits_write_every_record(tmp_path: Path) -> None:
    def commits(loop: LeaderLoop | SyncerLoop) -> None:
        def worker(number: int) -> object:
            waiter = Waiter()
            return lambda: loop.commit(waiter)

        many_threads(4, worker, count=203)  # type: ignore[arg-type]

    for name, make in (("leader", LeaderLoop), ("syncer", SyncerLoop)):
        loop = make(tmp_path / name, 100)
        commits(loop)
        loop.close()
        written = (tmp_path / name).read_bytes()
        assert len(written[: 203 * 100].strip(b"\0")) > 202 * 100, name
        assert not written[203 * 100 :].strip(b"\0"), name
    plain = PlainLoop(tmp_path / "plain", 100)
    plain.commit(Waiter())
    plain.close()
    syncer = SyncerLoop(tmp_path / "flowing", 10)
    assert pipelined(syncer, 0.02, 8) > 0
    syncer.close()


def test_a_worker_that_fails_is_heard(tmp_path: Path) -> None:
    def worker(number: int) -> object:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        many_threads(3, worker, seconds=0.01)  # type: ignore[arg-type]


def test_copy_and_sync_copies(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * 5000)
    copy_and_sync(tmp_path / "a", tmp_path / "copy")
    assert (tmp_path / "copy" / "b" / "file").read_bytes() == b"x" * 5000


def test_graphs_are_what_their_headers_say() -> None:
    edges = graphs.real("soc-Epinions1")
    assert edges.shape == (508_837, 2)
    assert edges[0].tolist() == [0, 4]
    assert graphs.node_count(edges) == 75_888  # ids up to 75,887; the header counts those that have an edge
    generated = graphs.rmat(8, 1000)
    assert (generated == graphs.rmat(8, 1000)).all()
    assert graphs.node_count(generated) <= 256


def tell(directory: Path, tamper: demo.Tamper) -> tuple[int, str]:
    said = io.StringIO()
    directory.mkdir()
    code = demo.run(directory, Terminal(10, said), edges=3000, writes=50, tamper=tamper)
    return code, said.getvalue()


def test_the_demo_holds(tmp_path: Path) -> None:
    code, said = tell(tmp_path / "demo", lambda chapter, story: None)
    assert code == 0, said
    assert "Every comparison held" in said


def test_the_demo_fails_for_a_write_that_is_gone(tmp_path: Path) -> None:
    def tamper(chapter: str, story: demo.Story) -> None:
        if chapter == "look up":
            last = max(write.edge for write in demo_writer.read_journals(story.journals))
            with open(story.journals / "9.journal", "wb") as journal:
                journal.write(b"%d 1 2 3\n" % (last + 1000))

    code, said = tell(tmp_path / "demo", tamper)
    assert code == 1, said
    assert "was acknowledged and is not there" in said


def test_the_demo_fails_for_a_write_that_is_another(tmp_path: Path) -> None:
    def tamper(chapter: str, story: demo.Story) -> None:
        if chapter == "look up":
            journal = story.journals / "0.journal"
            edge, source, target, stamp = map(int, journal.read_bytes().splitlines()[0].split())
            lines = journal.read_bytes().splitlines(keepends=True)
            journal.write_bytes(b"".join([b"%d %d %d %d\n" % (edge, source, target, stamp + 1), *lines[1:]]))

    code, said = tell(tmp_path / "demo", tamper)
    assert code == 1, said
    assert "was acknowledged as" in said


def test_the_demo_fails_for_a_damaged_backup(tmp_path: Path) -> None:
    def tamper(chapter: str, story: demo.Story) -> None:
        if chapter == "verify":
            largest = max((p for p in story.backup.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
            with open(largest, "r+b") as file:
                file.seek(largest.stat().st_size // 2)
                byte = file.read(1)
                file.seek(-1, io.SEEK_CUR)
                file.write(bytes([byte[0] ^ 1]))

    code, said = tell(tmp_path / "demo", tamper)
    assert code == 1, said
    assert "FAILED: Damaged" in said


def test_the_demo_fails_when_the_restored_store_differs(tmp_path: Path) -> None:
    from holdfast.engine import GraphStore

    def tamper(chapter: str, story: demo.Story) -> None:
        if chapter == "open restored":
            with (GraphStore.open(story.restored, create=False, online_backup_enabled=False) as store,
                  store.transaction() as tx):
                tx.add_node("Stranger")

    code, said = tell(tmp_path / "demo", tamper)
    assert code == 1, said
    assert "digest" in said


def test_a_workload_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    def one(bench: Bench) -> Iterator[Line]:
        yield Line(workload="something else", figure=Samples((1.0,)), unit="x")

    def other(bench: Bench) -> Iterator[Line]:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(command, "WORKLOADS", {"one": one, "other": other})
    assert command.main(["--quick", "--directory", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "something else" in said.out
    assert "no such luck" in said.err
    assert "FAILED: other" in said.err


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        command.main(["--only", "nonsense"])
    assert refused.value.code == 2
    assert "there is no workload 'nonsense'" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    assert demo.main(["--keep", str(tmp_path / "taken")]) == 2
    assert "exists already" in capsys.readouterr().out


@pytest.mark.parametrize(("sizes", "most", "then"), [
    ((100, 1000), 20_000, (100, 1000, 10_000, 20_000)), ((100, 1000), 500, (100, 500)), ((100, 1000), 50, (5, 50)),
    ((10, 100), 100, (10, 100)), ((10,), 2, (1, 2))])
def test_what_grows_is_measured_up_to_the_size_that_is_asked_for(sizes: tuple[int, ...], most: int,
                                                                 then: tuple[int, ...]) -> None:
    assert command._up_to(sizes, most) == then


def test_an_engine_of_ones_own_is_measured_beside_the_kits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_engine_to_measure.py").write_text(
        "from holdfast.engine.builtin.memory import MemoryEngine\n"
        "class Mine(MemoryEngine):\n    name = 'mine'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(harness, "QUICK", TINY)
    monkeypatch.setattr(workload_engine, "KEYS", 50)
    given = ["--engine", "my_engine_to_measure:Mine", "--directory", str(tmp_path), "--quick"]
    assert command.main([*given, "--json", str(tmp_path / "figures.json")]) == 0, capsys.readouterr().err
    lines = json.loads((tmp_path / "figures.json").read_text())["results"]
    words = {line["workload"] for line in lines}
    for word in ("1 thread", "3 threads", "pipelined", "checkpoint", "opening", "full", "incremental", "restore"):
        assert any(word in what for what in words), word
    assert {line["ours"] for line in lines} == {"mine"}
    assert {line["peer"] for line in lines} >= {"memory", "sqlite", "rocksdb"}
    assert all(line["figure"]["median"] > 0 and line["peer_figure"]["median"] > 0 for line in lines)
    for wrong, said in (([*given, "--only", "commits"], "leave out --only"),
                        (["--engine", "my_engine_to_measure:Nothing"], "has no 'Nothing'"),
                        (["--engine", "workloads:RecordsWorkload"], "does not lead to a KeyValues")):
        with pytest.raises(SystemExit):
            command.main(wrong)
        assert said in capsys.readouterr().err
