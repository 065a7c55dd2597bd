"""Kit records: logged as any other record, told to plugins, and never given to an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from store_kinds import KINDS, QUIET, Kind, commit

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.plugin import Condition, Plugin
from holdfast.engine.errors import InvalidInput
from holdfast.engine.model.records import LogRange, Record


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


class Told(Plugin):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, bool]] = []

    def logged(self, batch: LogRange) -> Condition | None:
        self.seen += [("logged", record.txid, record.is_kit) for record in batch.records]
        return None

    def published(self, records: Sequence[Record]) -> None:
        self.seen += [("published", record.txid, record.is_kit) for record in records]


def test_a_store_goes_on_around_kit_records(tmp_path: Path, kind: Kind) -> None:
    with kind.open(tmp_path / "s", settings=QUIET) as store:
        assert store.write_path.mark() == 1
        assert store.published.txid == 1
        assert store.engine.position.txid == 0
        commit(kind, store, 1)
        commit(kind, store, 2)
        assert store.write_path.mark() == 4
        commit(kind, store, 3)
        assert store.write_path.mark() == 6
        assert store.write_path.mark() == 7
        assert kind.numbers(store) == {1, 2, 3}
        assert store.checkpoint().txid == 5
        assert store.checkpoint().txid == 5
        assert store.published.txid == 7
        commit(kind, store, 4)
        assert kind.numbers(store, at_least=8) == {1, 2, 3, 4}
        assert [record.is_kit for record in store.log.read(0)] == [True, False, False, True, False, True, True, False]
        store.write_path.mark()
    with kind.open(tmp_path / "s", settings=QUIET) as store:
        assert kind.numbers(store) == {1, 2, 3, 4}
        assert store.durable.txid == 9
        assert store.recovery.replayed == 0
        assert store.checkpoint().txid == 8
        commit(kind, store, 5)
        assert store.checkpoint().txid == 10


def test_a_crash_before_the_checkpoint_replays_around_kit_records(tmp_path: Path, kind: Kind) -> None:
    with kind.open(tmp_path / "s", settings=QUIET) as store:
        commit(kind, store, 1)
        store.write_path.mark()
        commit(kind, store, 2)
        store.write_path.mark()
        store.write_path.mark()  # the last group, which a reader leaves out
        store.group_commit.fail(OSError("poisoned, so that nothing is checkpointed"))
    with kind.open(tmp_path / "s", read_only=True, settings=QUIET) as store:
        assert kind.numbers(store) == {1, 2}
        assert store.published.txid == 4
        assert store.refresh() == 4
    with kind.open(tmp_path / "s", settings=QUIET) as store:
        assert kind.numbers(store) == {1, 2}
        assert store.recovery.replayed == 2
        assert store.checkpoint().txid == 3
        commit(kind, store, 3)
        assert kind.numbers(store) == {1, 2, 3}


def test_a_reader_follows_over_kit_records(tmp_path: Path) -> None:
    kind = KINDS["staging"]
    with kind.open(tmp_path / "s", settings=QUIET) as store:
        commit(kind, store, 1)
        store.checkpoint()
        with kind.open(tmp_path / "s", read_only=True, settings=QUIET) as reader:
            store.write_path.mark()
            commit(kind, store, 2)
            store.write_path.mark()
            store.write_path.mark()
            assert reader.refresh() == store.durable.txid - 1  # the last group is not known to be durable
            assert kind.numbers(reader) == {1, 2}


def test_plugins_are_told_of_kit_records(tmp_path: Path) -> None:
    told = Told()
    with KINDS["staging"].open(tmp_path / "s", settings=QUIET, plugins=[told]) as store:
        commit(KINDS["staging"], store, 1)
        store.write_path.mark()
    for moment in ("logged", "published"):
        assert [seen[1:] for seen in told.seen if seen[0] == moment] == [(1, False), (2, True)]


def test_an_engine_may_not_write_payload_version_0() -> None:
    with pytest.raises(InvalidInput, match="payload version 0"):
        type("Wrong", (MemoryEngine,), {"payload_version": 0})
    with pytest.raises(InvalidInput, match="payload version 0"):
        type("Wrong", (MemoryEngine,), {"reads_payloads": frozenset({0, 1})})


def test_a_record_of_version_0_with_a_payload_is_not_a_kit_record() -> None:
    made: Any = Record.make(b"c" * 16, 1, 0, 1, 0, b"x")
    assert not made.is_kit
    assert Record.make(b"c" * 16, 1, 0, 1, 0, b"").is_kit
