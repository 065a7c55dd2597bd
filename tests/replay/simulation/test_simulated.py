"""Simulated clusters keep their promises, and each broken member is caught by the invariant that it breaks."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_broken import BROKEN, Broken

from holdfast.replay.simulation.__main__ import main
from holdfast.replay.simulation.checker import Violation
from holdfast.replay.simulation.faults import KINDS, Fault
from holdfast.replay.simulation.run import Report, run

MORE = {"nightly": 100, "ci": 2}.get(os.environ.get("HOLDFAST_PROFILE", ""), 1)
MIXES = {
    "all": KINDS,
    "leases": ("clock", "pause", "coordinator_of_some", "one_way"),
    "crashes": ("wipe", "busy_crash", "crash", "isolate", "split"),
    "voters": ("remove", "add", "tag", "busy_crash", "isolate", "swaps"),
    "planned": ("switch_over", "paused", "slow_disk", "delay", "swaps", "crash"),
    "network": ("delay", "loss", "duplication", "one_way", "busy_crash"),
}


@pytest.mark.parametrize("members", [3, 5])
@pytest.mark.parametrize("mix", MIXES)
def test_promises_hold_in_many_histories(mix: str, members: int) -> None:
    total = Report()
    for seed in range(MORE * (60 if members == 3 else 20)):
        total.add(run(seed, members=members, seconds=20.0, every=1.5, kinds=MIXES[mix]))
    sys.stdout.write(f"{mix}, {members} members: {total}\n")
    assert set(total.faults) - {"unknown swaps"} == set(MIXES[mix])
    assert total.failovers > total.histories  # else nothing was tried
    assert total.commits > 20 * total.histories
    assert total.reads > total.histories
    assert total.ticks < 10 * members * total.seconds


def test_a_long_life() -> None:
    """Most faults find a cluster that has been well for a while, and a log that has grown."""
    hours = {"nightly": 24 * 10, "ci": 6}.get(os.environ.get("HOLDFAST_PROFILE", ""), 1)
    report = run(2, seconds=hours * 3600.0, every=50.0, commit_every=1.0)  # some faults find nothing to break
    sys.stdout.write(f"{report}\n")
    assert report.commits > report.seconds
    assert sum(report.faults.values()) > report.seconds / 60
    assert report.failovers < sum(report.faults.values())  # else members stay dead, or fight


faults = st.builds(Fault, at=st.floats(0.0, 20.0), kind=st.sampled_from(KINDS), member=st.integers(0, 5),
                   lasts=st.floats(0.0, 15.0), more=st.integers(0, 15))


@settings(max_examples=60 * MORE, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1000), schedule=st.lists(faults, max_size=25))
def test_promises_hold_whatever_the_schedule_of_faults(seed: int, schedule: list[Fault]) -> None:
    run(seed, seconds=20.0, faults=schedule)


def test_a_seed_is_one_history() -> None:
    one, again, other = run(7), run(7), run(8)
    assert one == again
    assert one.digest != 0
    assert one.digest != other.digest


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_broken_members_are_caught(broken: Broken) -> None:
    seen = None
    for seed in range(1000):
        seen = _violation(seed, broken)
        if seen is not None and seen.invariant in broken.caught_by:
            break
    assert seen is not None, f"nothing caught {broken.name}"
    assert seen.invariant in broken.caught_by
    assert f"seed ({seed}, 3" in str(seen)
    assert seen.trace


def _violation(seed: int, broken: Broken) -> Violation | None:
    try:
        run(seed, seconds=20.0, every=1.0, kinds=broken.kinds, node_class=broken.node_class)
    except Violation as violation:
        return violation
    return None


def test_the_command_prints_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "3", "--members", "3", "--seconds", "10"]) == 0
    out = capsys.readouterr().out
    assert "3 histories" in out
    assert "commits" in out


def test_the_command_prints_the_seed_of_a_failure(capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(seed: int, **_: object) -> Report:
        if seed == 5:
            violation = Violation("the floor", "was broken")
            violation.seed, violation.trace = seed, ("a step",)
            raise violation
        return Report()

    monkeypatch.setattr("holdfast.replay.simulation.__main__.run", failing)
    assert main(["--seeds", "9"]) == 1
    out = capsys.readouterr().out
    assert "the floor: was broken" in out
    assert "a step" in out
    assert "--from 5 --seeds 1" in out
