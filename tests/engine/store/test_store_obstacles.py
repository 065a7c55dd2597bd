"""Plugins that hold transactions back before they begin, and slots that a plugin minds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from store_kinds import KINDS, MEMORY, Kind, commit, until

from holdfast.engine.contract.plugin import Fact, Obstacle, Plugin
from holdfast.engine.errors import RolledBack, StoreClosed
from holdfast.engine.source.http.limits import Counters
from holdfast.engine.source.http.status import metrics, page
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store


class Stands(Plugin):
    """Lets nothing begin while there is an obstacle."""

    def __init__(self) -> None:
        self.obstacle: Obstacle | None = None
        self.asked = 0

    def beginning(self) -> Obstacle | None:
        self.asked += 1
        return self.obstacle


def settings(**how: Any) -> Settings:
    return Settings(segment_bytes=128 << 10, heartbeat_s=0, **how)


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


def test_a_transaction_waits_for_an_obstacle_and_readers_do_not(kind: Kind, tmp_path: Path) -> None:
    stands = Stands()
    with kind.open(tmp_path / "store", settings=settings(), plugins=[stands]) as store, ThreadPoolExecutor(1) as pool:
        commit(kind, store, 1)
        stands.obstacle, asked = Obstacle("it is full", "empty it"), stands.asked
        waiting = pool.submit(commit, kind, store, 2)
        until(lambda: stands.asked > asked + 2)
        assert kind.numbers(store) == {1}
        store.checkpoint()  # of an engine that does not stage, it takes the writer lock
        assert not waiting.done()
        stands.obstacle = None
        waiting.result(30)
        assert kind.numbers(store) == {1, 2}
        assert store.status()["delayed_commits"] == 1


def test_an_obstacle_that_stays_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    stands = Stands()
    with MEMORY.open(tmp_path / "store", settings=settings(wait_s=0.2), plugins=[stands]) as store:
        stands.obstacle = Obstacle("it is full", "empty it")
        with pytest.raises(RolledBack, match=r"after 0\.2 s, it is full") as caught:
            commit(MEMORY, store, 1)
        assert caught.value.hint == "empty it"
        assert store.durable.txid == 0
        stands.obstacle = None
        commit(MEMORY, store, 1)


def test_a_plugin_that_fails_as_a_transaction_begins_rolls_it_back(tmp_path: Path) -> None:
    class Fails(Plugin):
        def beginning(self) -> Obstacle | None:
            raise ValueError("no idea")

    with MEMORY.open(tmp_path / "store", settings=settings(), plugins=[Fails()]) as store:
        with pytest.raises(RolledBack, match="no idea"):
            commit(MEMORY, store, 1)
        assert store.durable.txid == 0


def test_a_store_that_closes_waits_for_no_obstacle(tmp_path: Path) -> None:
    stands = Stands()
    store = MEMORY.open(tmp_path / "store", settings=settings(wait_s=600), plugins=[stands])
    with ThreadPoolExecutor(1) as pool:
        stands.obstacle = Obstacle("it is full", "empty it")
        waiting = pool.submit(commit, MEMORY, store, 1)
        until(lambda: stands.asked > 2)
        store.close()
        with pytest.raises(StoreClosed):
            waiting.result(30)


def test_what_a_plugin_shows_is_in_the_status_the_metrics_and_the_page(tmp_path: Path) -> None:
    class Shows(Plugin):
        def __init__(self, of: str) -> None:
            self.of = of

        def facts(self) -> tuple[Fact, ...]:
            return (Fact("copy_lag", 3, "how far it lags", of=self.of), Fact("copy_error", "<cut>", "why", of=self.of),
                    Fact("copy_runs_total", 7, "how often", "counter", of=self.of), Fact("copy_end", None, "unknown"))

    class Fails(Plugin):
        def facts(self) -> tuple[Fact, ...]:
            raise ValueError("no idea")

    with MEMORY.open(tmp_path / "store", settings=settings(), plugins=[Shows('a"b'), Fails(), Shows("c")]) as store:
        told = [(one["name"], one["of"], one["value"]) for one in store.status()["plugins"]]
        assert told[:4] == [("copy_lag", 'a"b', 3), ("copy_error", 'a"b', "<cut>"), ("copy_runs_total", 'a"b', 7),
                            ("copy_end", "", None)]
        assert len(told) == 8
        source = LocalSource(store)
        lines = metrics(source, store, Counters()).splitlines()
        at = lines.index("# HELP holdfast_copy_lag how far it lags")
        assert lines[at + 1 : at + 4] == ["# TYPE holdfast_copy_lag gauge", 'holdfast_copy_lag{of="a\\"b"} 3',
                                          'holdfast_copy_lag{of="c"} 3']
        assert "# TYPE holdfast_copy_runs_total counter" in lines
        assert not [line for line in lines if "copy_error" in line or "copy_end" in line]
        assert "<th>copy lag c<td>3" in page(source, store)
        assert "&lt;cut&gt;" in page(source, store)


def test_a_slot_that_is_minded_lags_as_far_as_its_owner_lets_it(tmp_path: Path) -> None:
    with MEMORY.open(tmp_path / "store", settings=settings(slot_bytes=1000, keep_logs="1 transactions")) as store:
        slots = store.log.slots
        commit(MEMORY, store, 1)
        LocalSource(store).register("aa", "minded", store.durable)
        slots.minded.add("aa")
        fill(store)
        store.prune()
        assert [slot.id for slot in slots.list()] == ["aa"]
        assert store.log.base.txid <= 1
        slots.minded.discard("aa")
        store.prune()
        assert slots.list() == []
        assert store.log.base.txid > 1


def test_a_minded_slot_whose_log_has_gone_holds_nothing(tmp_path: Path) -> None:
    with MEMORY.open(tmp_path / "store", settings=settings(keep_logs="1 transactions")) as store:
        commit(MEMORY, store, 1)
        old = store.durable
        fill(store)
        store.prune()
        assert store.log.base.txid > old.txid
        store.log.slots.register("aa", "late", old)
        store.log.slots.minded.add("aa")
        fill(store)
        base = store.log.base.txid
        store.prune()
        assert store.log.base.txid > base


def fill(store: Store[Any, Any]) -> None:
    for n in range(60):
        with store.transaction() as tx:
            tx.put(b"%d" % n, bytes(8000))
    store.checkpoint()
