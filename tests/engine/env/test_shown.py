"""Values in messages: they come out whatever somebody passed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_rig import Rig

from holdfast.engine.builtin.graph import BulkLoad
from holdfast.engine.env.shown import shown, type_name
from holdfast.engine.errors import HoldfastError, InvalidInput, NotFound, SettingError
from holdfast.engine.store.settings import Settings
from holdfast.engine.wal.writer import LogOptions

HUGE = 10**5000


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError("not today")


def test_what_cannot_be_written_is_shown_by_its_size_or_type() -> None:
    assert shown(HUGE) == shown(-HUGE) == "an int of 5,001 digits or so"
    assert shown(1 << 64) == "18446744073709551616"
    assert shown([HUGE]) == "some list"
    assert shown(Mute()).startswith("some ")
    assert shown("x\x1b[2J") == r"'x\x1b[2J'"
    assert len(shown("x" * 10_000)) == 81
    assert [type_name(value) for value in (True, np.bool_(True), "x")] == ["bool", type_name(np.True_), "str"]
    assert type_name(np.True_).startswith("numpy.")


@pytest.mark.parametrize("call", [
    lambda tx: tx.add_node("A", x=HUGE),
    lambda tx: tx.add_node("A", x=[{"y": HUGE}]),
    lambda tx: tx.node(HUGE),
    lambda tx: tx.has_node(HUGE) or tx.edge(HUGE),
    lambda tx: tx.neighbors(HUGE),
    lambda tx: tx.neighbors(1, direction=HUGE),
    lambda tx: tx.degree(HUGE),
    lambda tx: tx.edges(HUGE),
    lambda tx: tx.expand([HUGE]),
    lambda tx: tx.add_edge(HUGE, "X", HUGE),
    lambda tx: tx.delete_node(HUGE),
    lambda tx: tx.delete_edge(HUGE),
    lambda tx: tx.set_properties(HUGE, x=1),
    lambda tx: tx.set_edge_properties(HUGE, x=1),
])
def test_an_int_that_python_does_not_write_is_refused_in_words(tmp_path: Path, call: Callable[[Any], Any]) -> None:
    """Python refuses to turn ints of more than 4,300 digits into text, with a `ValueError`. Once it came from the very
    message that should have said that the number is too large."""
    rig = Rig(tmp_path)
    tx = rig.engine.begin()
    tx.add_node("A")
    with pytest.raises((InvalidInput, NotFound)) as caught:
        call(tx)
    assert len(str(caught.value)) < 300
    rig.engine.close()


def test_settings_and_loads_tell_of_such_ints_too(tmp_path: Path) -> None:
    for made in (lambda: Settings(segment_bytes=HUGE), lambda: Settings(wait_s=HUGE),
                 lambda: LogOptions(segment_bytes=HUGE),
                 lambda: Settings(keep_logs=HUGE), lambda: Settings(durability=HUGE)):  # type: ignore[arg-type]
        with pytest.raises(SettingError):
            made()
    with pytest.raises(InvalidInput, match="map_size"):
        Rig(tmp_path / "a", options={"map_size": HUGE})
    rig = Rig(tmp_path / "b")
    for load in (BulkLoad(nodes=HUGE), BulkLoad(nodes=1, edges=[(HUGE, 1)], edge_type="X")):
        with pytest.raises(InvalidInput):
            rig.load(load)
    rig.engine.close()


@pytest.mark.parametrize("value", [np.bool_(True), np.int64(1), np.float32(1), np.str_("x"), np.bytes_(b"x")])
def test_a_type_that_has_the_name_of_one_of_pythons_is_told_from_it(tmp_path: Path, value: Any) -> None:
    """`holds a bool (values are bool, …)` was said of numpy's bool."""
    rig = Rig(tmp_path)
    with pytest.raises(HoldfastError, match=r"holds a numpy\."):
        rig.engine.begin().add_node("A", x=value)
    with pytest.raises(HoldfastError, match=r"not numpy\."):
        rig.engine.begin().add_node(np.str_("A"))
    rig.engine.close()
