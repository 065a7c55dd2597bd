"""An engine's options: declared once, and checked before the engine sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.engine import Context
from holdfast.engine.contract.options import Option
from holdfast.engine.errors import InvalidInput
from holdfast.engine.model.positions import Position
from holdfast.engine.store.store import Store


class Optioned(MemoryEngine):
    options = {"size": Option(4096, "bytes in a page", least=512, most=65536),
               "fast": Option(True, "whether it hurries"), "tag": Option("none", "a text")}
    seen: list[dict[str, Any]] = []

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        cls.seen.append(dict(context.options))
        super().create(directory, position, Context(context.env, store_id=context.store_id))

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        cls.seen.append(dict(context.options))
        return super().open(directory, context, **how)


def test_an_engine_gets_all_its_options(tmp_path: Path) -> None:
    Optioned.seen.clear()
    with Store.open(tmp_path / "store", Optioned, options={"size": 512, "fast": False}):
        pass
    with Store.open(tmp_path / "store", Optioned, create=False):
        pass
    given = {"size": 512, "fast": False, "tag": "none"}
    assert Optioned.seen == [given, given, {"size": 4096, "fast": True, "tag": "none"}]


@pytest.mark.parametrize(("name", "value", "told"), [
    ("colour", "red", r"unknown engine option 'colour' \(this engine knows: size, fast, tag\)"),
    ("size", 511, r"size=511 must be of type int, at least 512, at most 65,536 \(size: bytes in a page\)"),
    ("size", 65537, "at most 65,536"), ("size", "512", "must be of type int"), ("size", True, "must be of type int"),
    ("fast", 1, r"fast=1 must be of type bool \(fast: whether it hurries\)"),
    ("tag", None, "tag=None must be of type str"),
])
def test_what_is_wrong_is_refused_and_said(tmp_path: Path, name: str, value: Any, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Store.open(tmp_path / "store", Optioned, options={name: value})
    with pytest.raises(InvalidInput, match="this engine knows: none"):
        MemoryEngine.open(tmp_path, Context(options={name: value}))


class _Opening:
    """A mix-in that is not an engine, and opens for one. Its parameters have names of their own."""

    @classmethod
    def open(cls, place: Path, with_what: Context, read_only: bool = False, at: Position | None = None) -> Any:
        return dict(with_what.options), read_only, at


class Mixed(_Opening, MemoryEngine):
    options = {"size": Option(4096, "bytes in a page", least=512)}


def test_a_mix_in_gets_all_options_too() -> None:
    """It got those that were given, unchecked, because only the engine's own class was looked at."""
    opened: Any = Mixed.open
    assert opened(Path("/"), Context()) == ({"size": 4096}, False, None)
    assert opened(Path("/"), with_what=Context(options={"size": 512})) == ({"size": 512}, False, None)
    with pytest.raises(InvalidInput, match="unknown engine option 'colour'"):
        opened(Path("/"), Context(options={"colour": "red"}))


def test_an_engine_may_take_the_arguments_of_open_by_position() -> None:
    start = Position(3, bytes(16))
    opened: Any = Mixed.open
    assert opened(Path("/"), Context(), True, start) == ({"size": 4096}, True, start)


def test_bounds_may_be_texts() -> None:
    with pytest.raises(InvalidInput, match="must be of type str, at least 'a', at most 'm'"):
        Option("b", "a letter", least="a", most="m").check("first", "z")


@pytest.mark.parametrize(("default", "told"), [(None, "no other value could ever be given"), (0, "default=0 must be"),
                                               (99, "at most 9")])
def test_a_default_that_no_user_could_give_is_refused(default: Any, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Option(default, "a digit", least=1, most=9)


def test_an_engine_that_still_checks_them_is_told() -> None:
    context = Context(options={"size": 512})
    with pytest.warns(DeprecationWarning, match="accept_options is not needed any more"):
        context.accept_options("size")
    with pytest.warns(DeprecationWarning, match="option is not needed any more"):
        assert context.option("size", 1) == 512
