"""Lines that never ran: which are told, and that the functions stay what they are."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine.testing.support.never_ran import never_ran, said, stretches_of, watch

SOURCE = '''from holdfast.engine.contract.engine import Engine


class Tried(Engine):
    """Only what is defined here counts."""

    name = "tried"

    def sign(self, number):
        """Only a text."""
        if number < 0:
            return -1
        for _ in range(number):
            break
        else:
            return 0
        match number:
            case 1:
                return 1
            case _:
                pass
        return self.more(
            number)

    @property
    def never(self):
        return 1

    def more(self, number):
        def inner():
            return number

        raise ValueError(inner())

    def not_meant(self):
        return 1  # pragma: no cover
'''


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "of_which_some_runs.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("of_which_some_runs").Tried


def test_what_never_ran_is_told_by_its_lines(tried: Any) -> None:
    one = type("One", (), {"sign": tried.sign, "more": tried.more})()
    assert never_ran(tried) == {}
    watch(tried)
    assert never_ran(tried)["of_which_some_runs.py"][0] == (11, 33)
    assert one.sign(1) == 1
    assert never_ran(tried) == {"of_which_some_runs.py": [(12, 12), (16, 16), (22, 33)]}
    with pytest.raises(ValueError, match="2") as raised:
        one.sign(2)
    assert never_ran(tried) == {"of_which_some_runs.py": [(12, 12), (16, 16), (27, 27)]}
    assert [line.lineno for line in traceback.extract_tb(raised.value.__traceback__)][1:] == [22, 33]


def test_each_engine_is_watched_by_itself(tried: Any) -> None:
    one = type("One", (), {"sign": tried.sign, "more": tried.more})()
    other = type("Other", (tried,), {})
    watch(tried)
    one.sign(0)
    watch(other)
    one.sign(-1)
    assert never_ran(tried)["of_which_some_runs.py"][0] == (12, 12)
    assert never_ran(other)["of_which_some_runs.py"][0] == (13, 33)


def test_stretches_in_words() -> None:
    assert stretches_of([3, 1, 2, 7]) == [(1, 3), (7, 7)]
    assert said([(1, 3), (7, 7)]) == "1-3, 7"
    assert said([(n, n) for n in range(1, 5)], 2) == "1, 2 and 2 more"
