"""The watermarks against a plain model: a list of synced ranges, each with what it waits for, walked from the start."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import LogRange
from holdfast.engine.store.watermarks import Watermarks


def at(txid: int) -> Position:
    return Position(txid, txid.to_bytes(16, "big"))


@dataclass
class Range:
    """A synced range in the model."""

    log: LogRange
    answered: bool = False
    open: dict[int, bool] = field(default_factory=dict)  # listener -> whether it gates publication


class WatermarksMachine(RuleBasedStateMachine):
    """Rules are the events; the model says from scratch after each what the watermarks must be."""

    @initialize(listeners=st.integers(0, 3), end=st.integers(0, 5))
    def begin(self, listeners: int, end: int) -> None:
        self.watermarks = Watermarks(at(end), at(0), listeners)
        self.listeners = listeners
        self.start = self.appended = self.durable = end
        self.ranges: list[Range] = []
        self.asked: list[tuple[LogRange, Range]] = []
        self.barrier: int | None = None
        self.before = self.shown()

    def shown(self) -> tuple[int, ...]:
        s = self.watermarks
        return tuple(p.txid for p in (s.appended, s.durable, s.acknowledged, s.publishable, s.published,
                                      s.checkpointed))

    # --- events

    @precondition(lambda self: self.barrier is None)
    @rule(barrier=st.booleans())
    def append(self, barrier: bool) -> None:
        self.appended += 1
        self.watermarks.append(at(self.appended), barrier=barrier)
        if barrier:
            self.barrier = self.appended

    @precondition(lambda self: self.appended > self.durable)
    @rule(data=st.data())
    def synced(self, data: st.DataObject) -> None:
        upto = data.draw(st.integers(self.durable + 1, self.appended))
        self.watermarks.synced(at(upto))
        if self.listeners:
            self.ranges.append(Range(LogRange(self.durable + 1, upto)))
        self.durable = upto

    @rule()
    def ask(self) -> None:
        log = self.watermarks.next_unanswered()
        waiting = [r for r in self.ranges if not any(r is asked for _, asked in self.asked)]
        if log is None:
            assert not waiting
        else:
            assert log == waiting[0].log
            self.asked.append((log, waiting[0]))

    @precondition(lambda self: any(not r.answered for _, r in self.asked))
    @rule(data=st.data())
    def answered(self, data: st.DataObject) -> None:
        log, model = next((log, r) for log, r in self.asked if not r.answered)
        answers = data.draw(st.dictionaries(st.integers(0, self.listeners - 1), st.booleans()))
        self.watermarks.answered(log.last, list(answers.items()))
        model.answered, model.open = True, dict(answers)

    @precondition(lambda self: self.listeners and self.asked)
    @rule(data=st.data())
    def met(self, data: st.DataObject) -> None:
        log, model = data.draw(st.sampled_from(self.asked))
        if not model.answered:
            return
        listener = data.draw(st.integers(0, self.listeners - 1))
        self.watermarks.met(listener, log.last)
        for earlier in self.ranges:
            if earlier.log.last <= log.last and earlier.answered:
                earlier.open.pop(listener, None)

    @precondition(lambda self: any(r.open for r in self.ranges))
    @rule(data=st.data())
    def expired(self, data: st.DataObject) -> None:
        log, model = data.draw(st.sampled_from([a for a in self.asked if a[1].open]))
        listener = data.draw(st.sampled_from(sorted(model.open)))
        assert self.watermarks.is_open(listener, log.last) == (model.log.last > self.acknowledged())
        self.watermarks.expired(listener, log.last)
        if not model.open[listener]:
            del model.open[listener]

    @precondition(lambda self: self.barrier is not None and self.publishable() >= self.barrier)
    @rule()
    def lift(self) -> None:
        assert self.barrier is not None
        self.watermarks.lift(at(self.barrier))
        self.barrier = None

    @rule(data=st.data())
    def checkpoint(self, data: st.DataObject) -> None:
        self.watermarks.checkpoint(at(data.draw(st.integers(0, self.watermarks.published.txid))))

    # --- what the model says

    def acknowledged(self) -> int:
        if not self.listeners:
            return self.durable
        reached = self.start
        for r in self.ranges:
            if not r.answered or r.open:
                break
            reached = r.log.last
        return reached

    def publishable(self) -> int:
        if not self.listeners:
            return self.durable
        reached = self.start
        for r in self.ranges:
            if not r.answered or any(r.open.values()):
                break
            reached = r.log.last
        return reached

    @invariant()
    def as_the_model(self) -> None:
        if not hasattr(self, "watermarks"):
            return
        now = appended, durable, acknowledged, publishable, published, checkpointed = self.shown()
        assert (appended, durable) == (self.appended, self.durable)
        assert acknowledged == self.acknowledged()
        assert publishable == self.publishable()
        if self.barrier is None:
            assert published == publishable
        else:
            assert published < self.barrier
            assert published == publishable or publishable >= self.barrier
        assert checkpointed <= published <= publishable <= durable <= appended
        assert acknowledged <= durable
        assert all(old <= new for old, new in zip(self.before, now, strict=True))
        self.before = now


TestWatermarks = WatermarksMachine.TestCase
TestWatermarks.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# --- the rules one by one, to be read


def held(gates: bool) -> tuple[Watermarks, LogRange]:
    watermarks = Watermarks(at(0), at(0), 1)
    watermarks.append(at(1))
    watermarks.synced(at(1))
    log = watermarks.next_unanswered()
    assert log == LogRange(1, 1)
    watermarks.answered(log.last, [(0, gates)])
    return watermarks, log


def test_without_listeners_durable_is_published() -> None:
    watermarks = Watermarks(at(0), at(0))
    watermarks.append(at(1))
    assert watermarks.published.txid == 0
    watermarks.synced(at(1))
    assert (watermarks.acknowledged, watermarks.published) == (at(1), at(1))


def test_a_gating_condition_that_expires_stays_open_until_it_is_met() -> None:
    watermarks, log = held(gates=True)
    assert (watermarks.durable.txid, watermarks.acknowledged.txid, watermarks.published.txid) == (1, 0, 0)
    watermarks.expired(0, log.last)
    assert (watermarks.acknowledged.txid, watermarks.published.txid) == (0, 0)
    watermarks.met(0, 1)
    assert (watermarks.acknowledged.txid, watermarks.published.txid) == (1, 1)


def test_one_that_does_not_gate_holds_acknowledgement_only_until_it_expires() -> None:
    watermarks, log = held(gates=False)
    assert (watermarks.acknowledged.txid, watermarks.published.txid) == (0, 1)
    watermarks.expired(0, log.last)
    assert (watermarks.acknowledged.txid, watermarks.published.txid) == (1, 1)


def test_meeting_a_later_one_meets_the_earlier() -> None:
    watermarks, _ = held(gates=True)
    watermarks.append(at(2))
    watermarks.synced(at(2))
    log = watermarks.next_unanswered()
    assert log is not None
    watermarks.answered(log.last, [(0, True)])
    watermarks.met(0, 2)
    assert (watermarks.acknowledged.txid, watermarks.published.txid) == (2, 2)


def test_nothing_is_acknowledged_before_every_listener_has_answered() -> None:
    watermarks = Watermarks(at(0), at(0), 2)
    watermarks.append(at(1))
    watermarks.synced(at(1))
    assert (watermarks.durable.txid, watermarks.acknowledged.txid, watermarks.published.txid) == (1, 0, 0)
    log = watermarks.next_unanswered()
    assert log is not None
    watermarks.answered(log.last, [])
    assert (watermarks.acknowledged.txid, watermarks.published.txid) == (1, 1)


def test_nothing_is_appended_behind_a_barrier() -> None:
    watermarks = Watermarks(at(0), at(0))
    watermarks.append(at(1), barrier=True)
    with pytest.raises(AssertionError):
        watermarks.append(at(2))
    watermarks.synced(at(1))
    assert (watermarks.acknowledged.txid, watermarks.published.txid) == (1, 0)
    watermarks.lift(at(1))
    assert watermarks.published.txid == 1
    watermarks.append(at(2))
