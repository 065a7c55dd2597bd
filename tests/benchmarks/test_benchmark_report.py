"""What is made of results: the file, the comparison with an earlier run, groups, text, and the command line."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_runs import CURVE, LATENCIES, MACHINE, beside, everything, hostile, line, of, run_of

from holdfast.benchmarks import __main__ as command
from holdfast.benchmarks.harness import QUICK, Bench, Curve, Result, Samples
from holdfast.benchmarks.report import compare, figures, saved, text
from holdfast.benchmarks.report.groups import Group, grouped, overall, standing
from holdfast.engine.errors import SettingError

# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [everything, hostile])
def test_what_is_saved_is_loaded(tmp_path: Path, make: Any) -> None:
    saved.save(tmp_path / "run.json", make())
    assert saved.load(tmp_path / "run.json") == make()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)


def test_only_some_workloads_of_a_run() -> None:
    whole = replace(everything(), results={"a": [CURVE], "b": [LATENCIES]}, failed=("b",))
    assert whole.only(["a"]) == replace(whole, results={"a": [CURVE]}, failed=())
    with pytest.raises(SettingError, match=r"no workload 'c'.*it has a, b"):
        whole.only(["c"])


@pytest.mark.parametrize(("content", "said"), [
    (None, "cannot be read: No such file"), ("{", "is not a run"), ("[]", "is not a run"), ("{}", "is not a run"),
    ('{"format": 2}', "has format 2"), (b"\xff\xfe", "is not a run"),
    ('"results": [', '"results": [{"of": "some", "kind": "pie"},'),
    ('"values": [', '"values": [], "values_": ['), ('"of": "some"', '"of": "other"'),
])
def test_a_file_that_is_not_a_run_is_refused(tmp_path: Path, content: str | bytes | None, said: str) -> None:
    path = tmp_path / "run.json"
    saved.save(path, everything())
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content in path.read_text():
        path.write_text(path.read_text().replace(content, said))
        said = "is not a run"
    else:
        path.write_text(content)
    with pytest.raises(SettingError, match=f"run.json.*{said}"):
        saved.load(path)


# --- growth and comparison -------------------------------------------------------------------------------------------


def test_the_exponent_is_the_slope_of_the_logarithms() -> None:
    def curve(*costs: Samples | None, flat: float | None = 1.5) -> Curve:
        return replace(CURVE, costs={"ours": costs}, flat=flat)

    for power in (0.0, 0.5, 1.0, 2.0):
        grows = curve(*(of(3 * size**power, 4 * size**power, 5 * size**power) for size in CURVE.sizes))
        assert grows.exponent("ours") == pytest.approx(power)
        assert grows.grown == pytest.approx(100**power)
        assert grows.met is (power == 0.0)
        assert replace(grows, flat=None).met is None
    assert curve(of(2.0), None, of(200.0)).exponent("ours") == pytest.approx(1.0)
    assert curve(None, of(2.0), None).exponent("ours") is None
    assert curve(None, of(2.0), None).met is None
    assert curve(of(1.0), of(1.4), None).met is True
    assert curve(of(0.0), of(0.0), of(0.0)).exponent("ours") == 0


@pytest.mark.parametrize(("better", "then", "now", "verdict"), [
    ("more", (1, 2, 3), (4, 5, 6), "better"), ("more", (4, 5, 6), (1, 2, 3), "worse"),
    ("less", (1, 2, 3), (4, 5, 6), "worse"), ("less", (4, 5, 6), (1, 2, 3), "better"),
    ("more", (1, 2, 4), (4, 5, 6), "no difference"), ("less", (1, 9, 9), (4, 5, 6), "no difference"),
    ("more", (1, 2), (4, 5, 6), "not judged"), ("more", (1, 2, 3), (4,), "not judged"),
])
def test_a_difference_counts_if_the_rounds_do_not_overlap(better: Any, then: tuple[float, ...], now: tuple[float, ...],
                                                         verdict: str) -> None:
    [change] = compare.compare(run_of(line(figure=Samples(then), better=better)),
                               run_of(line(figure=Samples(now), better=better))).changes
    assert (change.verdict, change.now.unit) == (verdict, "commits/s")


def test_ratios_are_compared_where_there_is_a_peer() -> None:
    """Everything is three times as slow, and so is the peer."""
    then = run_of(beside("SQLite", of(30, 33, 36), of(15, 15, 15)), beside("RocksDB", of(30, 33, 36), of(3, 3, 3)))
    now = run_of(beside("SQLite", of(10, 11, 12), of(5, 5, 5)), beside("RocksDB", of(10, 11, 12), of(5, 5, 5)))
    found = compare.compare(then, now)
    assert [(change.now.what, change.now.unit, change.verdict) for change in found.changes] == [
        ("commits, beside SQLite", "×", "no difference"), ("commits, beside RocksDB", "×", "worse")]
    assert found.changes[0].then.samples == of(2, 2.2, 2.4)
    assert found.counts() == {"no difference": 1, "worse": 1}


def test_what_only_one_run_has_is_said() -> None:
    then = run_of(line("a"), line("b"), line("b", of(1, 2, 3)))
    now = run_of(line("b"), line("c"), replace(line("a"), unit="ms"))
    found = compare.compare(then, now)
    assert [change.now.what for change in found.changes] == ["b"]
    assert found.changes[0].then.samples == of(10, 11, 12)
    assert (found.only_then, found.only_now) == (("a", "b"), ("c", "a"))


def test_curves_and_latencies_are_compared() -> None:
    better = replace(CURVE, costs={**CURVE.costs, "Holdfast": (of(4, 5, 6), of(5, 5, 5), of(2, 2, 2))})
    slower = replace(LATENCIES, percentiles={**LATENCIES.percentiles, "Holdfast": ((0.5, 0.4), (0.99, 6.0))})
    found = compare.compare(run_of(CURVE, LATENCIES), run_of(better, slower)).changes
    assert {change.now.what: (change.verdict, change.now.samples.median) for change in found} == {
        "opening, at 10,000 edges over at 100": ("better", 0.4),
        "opening, at 100 edges, beside SQLite": ("no difference", 5.0),
        "opening, at 10,000 edges, beside Kùzu": ("better", 0.01),
        "mixed reads, p50, beside SQLite": ("not judged", 1.0), "mixed reads, p99, beside SQLite": ("not judged", 2.0)}
    alone = replace(CURVE, costs={"Holdfast": CURVE.costs["Holdfast"]})
    assert [change.now.what for change in compare.compare(run_of(alone), run_of(alone)).changes] == [
        "opening, at 10,000 edges over at 100", "opening, at 10,000 edges"]


def test_what_may_mislead_is_said() -> None:
    there = run_of(line())
    assert compare.compare(there, there).warnings == ()
    elsewhere = {**MACHINE, "cpu": "another", "load": [1.5, 0, 0], "versions": {"holdfast": "9", "lmdb": "4.0.0"}}
    machine, libraries, busy = compare.compare(there, run_of(line(), machine=elsewhere)).warnings
    assert machine == ("The machines differ (cpu a processor then, another now): figures without a peer say little.")
    assert libraries == "Libraries differ: lmdb 3.0.0 then, 4.0.0 now."
    assert busy == "Now: something else was running: the load of the last minute was 1.5 on 2 cores."
    [scale] = compare.compare(there, replace(there, scale={**there.scale, "rounds": 7})).warnings
    assert "different amounts of work" in scale


# --- groups ----------------------------------------------------------------------------------------------------------


def test_lines_of_one_work_are_one_group_with_ours_first() -> None:
    results = everything().results["some"]
    commits, curve, latencies, memory, size = grouped(results)
    assert isinstance(commits, Group)
    assert [(bar.name, bar.ours) for bar in commits.bars] == [
        ("Holdfast", True), ("SQLite", False), ("RocksDB", False), ("plain loop", False)]
    assert (curve, latencies) == (CURVE, LATENCIES)
    assert isinstance(memory, Group)
    assert [bar.name for bar in memory.bars] == ["Holdfast"]
    assert isinstance(size, Group)
    apart = Group((beside("SQLite", of(1, 2), of(1, 1)), beside("RocksDB", of(3, 4), of(1, 1))))
    assert [bar.name for bar in apart.bars] == ["Holdfast, beside SQLite", "SQLite", "Holdfast, beside RocksDB",
                                                "RocksDB"]


def test_ahead_is_said_of_every_round_only() -> None:
    assert standing(beside("p", of(2, 3), of(1, 1))) == "ahead"
    assert standing(beside("p", of(2, 3), of(1, 1), better="less")) == "behind"
    assert standing(beside("p", of(1, 2), of(2, 3), better="less")) == "ahead"
    assert standing(beside("p", of(1, 3), of(2, 2))) is None
    assert standing(beside("p", of(3), of(1))) is None
    assert standing(line()) is None


def test_a_peers_mean_is_geometric_and_turned_if_less_is_better() -> None:
    found = overall([beside("a", of(4), of(1)), beside("a", of(4), of(1), better="less"), beside("b", of(2), of(1)),
                     beside("c", of(1), of(8)), beside("c", of(1), of(2)), beside("c", of(1), of(0))])
    assert [(one.peer, one.advantages) for one in found] == [("a", (4.0, 0.25)), ("c", (0.125, 0.5))]
    assert [one.mean for one in found] == pytest.approx([1.0, 0.25])


# --- text ------------------------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    """Text that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("screen", [io.StringIO, Screen])
def test_the_text_shows_every_kind(screen: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    shown = screen()
    text.show(everything(), shown)
    said = shown.getvalue()
    for word in ("SQLite", "2.20 × (2.00 … 2.40)", "≥ 1 ×", "n^0.04", "n^1.00", "p99.9", "mixed reads",
                 "1.20 × from 100 to 10,000 edges", "opening, by edges", "900", "medians",
                 "3 of 4 targets are met", "cluster ended with an error", "load 0.1, 0.2, 0.3"):
        assert word in said, (word, said)
    shown = screen()
    text.show(hostile(), shown)
    assert "$\\frac{$" in shown.getvalue()


def test_the_comparison_is_told() -> None:
    shown = io.StringIO()
    text.show_comparison(compare.compare(run_of(line("a"), line("gone")), run_of(line("a", of(1, 2, 3)), line("new"))),
                         shown)
    told = [re.sub(" +", " ", one).strip() for one in shown.getvalue().splitlines()]
    assert told[1:] == ["Compared with the run of 2026-11-29T16:21:05+00:00:",
                        "worse a: 11.0 commits/s (10.0 … 12.0) then, 2.00 commits/s (1.00 … 3.00) now",
                        "only then gone", "only now new",
                        "0 better, 1 worse, 0 without a difference that the rounds show, 0 not judged, because they "
                        "have fewer than three rounds."]


# --- the command line ------------------------------------------------------------------------------------------------


def test_a_saved_run_is_reported_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved.save(tmp_path / "new.json", replace(everything(), results={"a": [CURVE], "b": [LATENCIES]}))
    saved.save(tmp_path / "old.json", replace(everything(), results={"a": [CURVE]}, failed=()))
    assert command.main([
        "--from", str(tmp_path / "new.json"), "--compare", str(tmp_path / "old.json"), "--only", "a",
        "--html", str(tmp_path / "page.html"), "--png", str(tmp_path / "png"), "--json", str(tmp_path / "a.json")]) == 0
    said = capsys.readouterr().out
    assert "opening" in said
    assert "mixed reads" not in said
    assert "3 without a difference" in said
    assert "Since the earlier run" in (tmp_path / "page.html").read_text()
    assert [path.name for path in (tmp_path / "png").iterdir()] == ["a-opening-by-edges.png"]
    assert list(saved.load(tmp_path / "a.json").results) == ["a"]


def test_what_cannot_be_written_is_refused_before_anything_is_measured(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def never(bench: Bench) -> Iterator[Result]:
        raise AssertionError("measured")

    monkeypatch.setattr(command, "WORKLOADS", {"never": never})
    (tmp_path / "file").write_text("")
    saved.save(tmp_path / "run.json", everything())
    kept = str(tmp_path / "run.json")
    for given, said in ((["--compare", str(tmp_path / "none.json")], "cannot be read"),
                        (["--compare", str(tmp_path / "file")], "is not a run"),
                        (["--html", str(tmp_path / "none" / "page.html")], "is not a directory"),
                        (["--json", str(tmp_path / "none" / "run.json")], "is not a directory"),
                        (["--png", str(tmp_path / "file")], "is not a directory"),
                        (["--from", kept, "--quick"], "measures nothing"),
                        (["--from", kept, "--only", "other"], "no workload 'other'")):
        with pytest.raises(SystemExit) as refused:
            command.main(given)
        assert refused.value.code == 2
        assert said in capsys.readouterr().err, given
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    for option in ("--html", "--png"):
        with pytest.raises(SystemExit):
            command.main([option, str(tmp_path / "made")])
        assert "holdfast[benchmarks]" in capsys.readouterr().err


def test_it_says_how_much_is_left(tmp_path: Path) -> None:
    said: list[str] = []
    results, failed = command.run(QUICK, tmp_path, ["a", "b"], said.append,
                                  {"a": lambda bench: iter([CURVE]), "b": lambda bench: iter([LATENCIES])})
    assert (results, failed) == ({"a": [CURVE], "b": [LATENCIES]}, [])
    assert said == ["1 of 2 workloads done; as long as they took on average, 0 s are left"]
