"""The store's state machine, run with each engine of the kit: at random, and through a life that leaves nothing out."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from machine_adapters import EngineAdapter, GraphAdapter, MemoryAdapter, Operation, RecordsAdapter
from machine_store import machine

ADAPTERS = [pytest.param(adapter, id=adapter.engine.name) for adapter in (MemoryAdapter(), RecordsAdapter(),
                                                                          GraphAdapter())]
EFFORT = settings(max_examples=20, stateful_step_count=30, deadline=None,
                  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_any_history_of_a_store(adapter: EngineAdapter) -> None:
    run_state_machine_as_test(machine(adapter), settings=EFFORT)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_whole_life_of_a_store(adapter: EngineAdapter) -> None:
    """The machine's rules in one fixed order, so that each runs in every run of the suite, with random content."""

    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(data=st.data())
    def life(data: st.DataObject) -> None:
        def some() -> list[Operation]:
            return data.draw(adapter.operations())

        m = machine(adapter)()
        try:
            m.create("1 transactions")
            m.commit_several([some(), some(), some()], "synced")
            m.look(unsynced=False)
            m.checkpoint()
            m.roll_back(some())
            m.commit_several([some(), some()], "relaxed")
            m.look(unsynced=True)
            m.back_up([some(), None, some()])
            m.verify()
            m.look_again(0)
            m.commit_several([some(), some()], "pipelined")
            m.commit_nothing("synced")
            m.wait()
            m.back_up([])
            m.verify()
            for share in (0.0, 0.5, 1.0):
                m.restore(share, by_time=False, go_on=False)
                m.restore(share, by_time=True, go_on=False)
            m.restore_outside(1)
            m.restore_outside(-1)
            m.commit_several([some(), some()], "synced")
            m.crash("as it is", b"!", 0.0)
            m.commit_several([some(), some()], "synced")
            m.crash("noise behind", b"noise" * 20, 0.0)
            m.commit_several([some(), some()], "synced")
            m.crash("torn", b"!", 0.6)
            m.reopen()
            m.lose_the_target_s_log(some())
            m.back_up([some()])
            m.verify()
            m.restore(0.5, by_time=False, go_on=True)
            m.commit_several([some(), some()], "synced")
            m.back_up([None, some()])
            m.boot_a_copy_of_the_target()
            m.commit_several([some(), some()], "synced")
            m.reopen()
        finally:
            m.teardown()

    life()
