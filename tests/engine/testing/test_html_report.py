"""The page of a report: everything that a report holds is on it, and nothing that an engine says is taken for HTML."""

from __future__ import annotations

import dataclasses
import json

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.testing.support.circumstances import circumstances
from holdfast.engine.testing.support.growth import Cost, growth
from holdfast.engine.testing.support.html_report import page
from holdfast.engine.testing.support.report import Fault, Report, Tried


def report() -> Report:
    grown = growth("commit", "history", [(60, Cost(43, 100, 0, 1e-5)), (1500, Cost(44, 50, 0, 5e-4))])
    return Report(
        "<scores>", circumstances(MemoryEngine, "ci", 17),
        tried=[Tried("A.test_one", "One is `one`.", "holds", 25, 0.5), Tried("A.test_two", "Two.", "broken", 1, 0.1),
               Tried("B.test_three", "Three.", "does not apply", 0, 0.0)],
        passed=["A.test_one"], skipped={"B.test_three": "it takes <none>"},
        faults=[Fault("A.test_two", "Two.", AssertionError("x"), "AssertionError: b'<script>' is & there")],
        figures={"crash states": 1234}, untried={"other versions": "none is named"}, growth=[grown],
        never_ran={"mine.py": [(3, 3), (7, 9)]})


def test_all_of_a_report_is_on_its_page() -> None:
    shown = page(report())
    for said in ("1 check broken", "&lt;scores&gt;", "One is <code>one</code>.", "25 examples", "it takes &lt;none&gt;",
                 "b&#x27;&lt;script&gt;&#x27; is &amp; there", "1,234", "none is named", "mine.py", "3, 7-9",
                 "commit against history", "1,500 transactions", "<dd>17</dd>", "<dd>ci</dd>", "A: 1 of 2 hold",
                 "10µ to 500µ", "1.2"):
        assert said in shown, said
    assert "<script" not in shown
    assert "files, bytes" not in shown, "nothing of it was counted"


def test_a_report_in_which_all_holds_says_so_and_leaves_the_rest_out() -> None:
    shown = page(dataclasses.replace(report(), faults=[], untried={}, never_ran={}, growth=[]))
    assert "every check holds" in shown
    for word in ("What is broken", "What was not tried", "How costs grow", "<svg"):
        assert word not in shown


def test_a_report_as_json_is_all_of_it() -> None:
    found = json.loads(json.dumps(report().to_json()))
    assert set(found) == {field.name for field in dataclasses.fields(Report)} | {"ok"}
    assert found["faults"] == [{"check": "A.test_two", "property": "Two.", "error": "AssertionError",
                                "message": "AssertionError: b'<script>' is & there"}]
    assert found["growth"][0]["points"][1] == [1500, {"lines": 44, "memory": 50, "moved": 0, "seconds": 5e-4}]
    assert (found["ok"], found["circumstances"]["profile"], found["circumstances"]["seed"]) == (False, "ci", 17)
