"""The store's state machine, run with each engine of the kit."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from machine_adapters import EngineAdapter, GraphAdapter, MemoryAdapter, RecordsAdapter
from machine_store import machine

EFFORT = settings(max_examples=20, stateful_step_count=30, deadline=None,
                  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.mark.parametrize("adapter", [MemoryAdapter(), RecordsAdapter(), GraphAdapter()], ids=lambda a: a.engine.name)
def test_any_history_of_a_store(adapter: EngineAdapter) -> None:
    run_state_machine_as_test(machine(adapter), settings=EFFORT)
