"""Commands made of functions: what is given by place and by name, in any order, and what is refused."""

from __future__ import annotations

from typing import Annotated, Any

import pytest

from holdfast.backup.command_line import Argument, Command, Commands, Given, Option
from holdfast.engine.errors import InvalidInput

called: list[dict[str, Any]] = []


def try_it(one: Annotated[str, Argument(help="100% of it.")],
           two: Annotated[str, Argument(help="More.")] = "",
           flag: Annotated[bool, Option(help="A flag.")] = True,
           only: Annotated[bool, Option("--only", help="Another.")] = False,
           seconds: Annotated[float, Option(help="How long.")] = 1.5,
           names: Annotated[list[str] | None, Option("--name", help="May be repeated.")] = None,
           given: Given = frozenset()) -> None:
    """Try it.  In two lines: 5% of
    them."""
    called.append({name: value for name, value in locals().items() if name != "given"} | {"given": set(given)})


COMMAND = Command(try_it, "test try")


@pytest.mark.parametrize(("words", "expected"), [
    (["a"], {"one": "a"}),
    (["a", "--name", "x", "b", "--name=y"], {"one": "a", "two": "b", "names": ["x", "y"]}),
    (["--no-flag", "--seconds", "-2", "a"], {"one": "a", "flag": False, "seconds": -2.0}),
    (["--only", "--flag", "--", "-a", "--only"], {"one": "-a", "two": "--only", "only": True, "flag": True}),
    (["-"], {"one": "-"}),
])
def test_what_is_given(words: list[str], expected: dict[str, Any]) -> None:
    called.clear()
    COMMAND.run(words)
    defaults = {"one": None, "two": "", "flag": True, "only": False, "seconds": 1.5, "names": None}
    assert called == [{**defaults, **expected, "given": set(expected)}]


@pytest.mark.parametrize(("words", "why"), [
    ([], "ONE must be given"), (["a", "b", "c"], "'c' is one argument too many"),
    (["a", "--nam", "x"], "no option --nam"), (["a", "--no-only"], "no option --no-only"),
    (["a", "--seconds", "soon"], "--seconds"), (["a", "--name"], "--name"), (["a", "--only=1"], "--only"),
])
def test_what_is_refused(words: list[str], why: str) -> None:
    called.clear()
    with pytest.raises(InvalidInput, match=why) as refused:
        COMMAND.run(words)
    assert refused.value.hint == "see test try --help"
    assert not called


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    app = Commands(help="All of 1%.")
    app.command("try")(try_it)
    app.run(["try", "-h"], "test")
    shown = capsys.readouterr().out
    for said in ("usage: test try [OPTIONS] ONE [TWO]", "Try it. In two lines: 5% of them.", "100% of it.",
                 "--flag, --no-flag", "Default: --flag.", "Default: 1.5."):
        assert said in shown
    app.run(["--help"], "test")
    assert "All of 1%." in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        app.run([], "test")
    assert ended.value.code == 2
    with pytest.raises(InvalidInput, match="there is no command 'tri'"):
        app.run(["tri"], "test")
