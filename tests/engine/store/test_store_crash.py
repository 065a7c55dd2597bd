"""What the crash checks stand on: scripts that do all that a store does, honest counts, messages that tell the loss.

The checks themselves run with each engine's contract, and must catch the zoo.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from workloads import WORKLOADS

from holdfast.engine.testing import Contract, Workload, check, check_engine
from holdfast.engine.testing.support.counters import count
from holdfast.engine.testing.support.scripts import AFTER_FULL, full_segments, long_script, short_script
from holdfast.engine.testing.support.simulated_run import Run, Step
from holdfast.engine.testing.support.workload import sampled

KINDS = ("memory", "staging", "records")
Script = Callable[[Workload], list[Step]]


def recorded(kind: str, script: Script) -> Run:
    work = WORKLOADS[kind]()
    run = Run(work)
    run.do(*script(work))
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_the_long_script_does_all_that_a_store_does(kind: str) -> None:
    run = recorded(kind, long_script)
    assert {op.kind for op in run.disk.ops} == {"make", "write", "truncate", "sync", "names", "sync names"}
    assert {op.says for op in run.disk.ops if op.kind == "names"} >= {"creation", "rename", "removal"}
    assert run.store.log.base.txid > 8, "log was pruned"
    loads = {"load"} if kind == "staging" else set()
    assert {step[0] for _, step in run.told} == loads | {
        "open", "commit", "together", "checkpoint", "spare", "keep", "let_go", "epoch", "prune", "close"}


@pytest.mark.parametrize("kind", KINDS)
def test_segments_fill_within_a_session(kind: str) -> None:
    """The next segment is begun where the script says that the full one does not fit, and pruning removes the full one,
    which the checkpoint before the last has need of."""
    run = recorded(kind, full_segments)
    since = run.told[-AFTER_FULL][0]
    renamed = [op.label for op in run.disk.ops[since:] if op.says == "rename" and "to 0" in op.label]
    removed = [op.label for op in run.disk.ops[since:] if op.says == "removal" and op.label.endswith(".seg")]
    assert len(renamed) == 1
    assert len(removed) == 1


def test_scripts_are_the_same_each_time() -> None:
    for kind in KINDS:
        first, second = (recorded(kind, short_script) for _ in range(2))
        assert first.disk.ops == second.disk.ops
        assert first.acknowledged == second.acknowledged
    work = WORKLOADS["memory"]()
    assert sampled(work.operations(), 20) == sampled(work.operations(), 20)


def test_a_run_syncs_once_for_each_commit() -> None:
    """What the whole is about, and what makes it fast: nothing but one sync of log bytes between two commits."""
    run = Run(WORKLOADS["memory"]())
    run.do(("open",), *(("commit", run.work.numbered(number)) for number in range(4)))
    (before, _), (after, _) = run.acknowledged[-2:]
    assert [op.kind for op in run.disk.ops[before:after]] == ["write", "sync"]


def test_equal_disks_are_tried_once_and_counted_once() -> None:
    run = Run(WORKLOADS["memory"]())
    run.do(("open",), ("commit", run.work.numbered(1)))
    ops = len(run.disk.ops)
    assert [run.survives(run.disk.killed(), ops) for _ in range(3)] == [1, 1, 1]
    assert run.states == 1


def test_what_is_lost_is_told() -> None:
    run = Run(WORKLOADS["memory"]())
    run.do(("open",), ("commit", run.work.numbered(1)))
    disk = run.disk.killed()
    run.do(("commit", run.work.numbered(2)))
    with pytest.raises(AssertionError, match="ends at transaction 1, and transaction 2 was acknowledged") as caught:
        run.survives(disk, len(run.disk.ops))
    told = "\n".join(caught.value.__notes__)
    assert "('commit', [('put', b'number 2', b'2')])" in told
    assert f"cut off after operation {len(run.disk.ops)} of the disk, the sync of 000000000001.seg" in told


def test_a_report_has_the_figures() -> None:
    class Counting(Contract):
        @check()
        def test_one(self, work: Workload) -> None:
            """One."""
            count("crash states", work.engine.name, 1200)

        @check()
        def test_another(self, work: Workload) -> None:
            """Another."""
            count("crash states", work.engine.name, 34)

    count("crash states", "somebody else's", 5)
    report = check_engine(WORKLOADS["memory"], [Counting])
    assert report.figures == {"crash states": 1234}
    assert "crash states tried: 1,234" in str(report)
