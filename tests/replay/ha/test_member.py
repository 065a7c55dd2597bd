"""The state machine of a member, one event at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from holdfast.replay.ha import quorum
from holdfast.replay.ha.document import ClusterDocument, MemberEntry
from holdfast.replay.ha.effects import (
    Accept,
    Acknowledge,
    Answer,
    Effect,
    End,
    Keep,
    Publish,
    Read,
    Reply,
    Say,
    StepDown,
    Swap,
    Whole,
)
from holdfast.replay.ha.member import State, StateMachine

NAMES = ("a", "b", "c")
ENTRIES = {name: MemberEntry(address=name, generation=1, instance=name) for name in NAMES}
DOCUMENT = ClusterDocument(cluster="c", store_id="ab", epoch=1, leader="b", ttl=10.0, voters=NAMES, members=ENTRIES)
NOTHING = End(0, 0, b"")
AnEffect = TypeVar("AnEffect", bound=Effect)


def member(name: str = "a", *, kept: ClusterDocument | None = DOCUMENT, **changes: Any) -> StateMachine:
    return StateMachine(name, ENTRIES[name], **{"promised": (0, ""), "end": NOTHING, "published": 0, "kept": kept,
                                          "whole": True, "nonce": lambda: "n", "now_us": lambda: 0, **changes})


def only(kind: type[AnEffect], effects: list[Effect]) -> AnEffect:
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]


def primary(document: ClusterDocument = DOCUMENT, now: float = 100.0) -> StateMachine:
    """A primary in epoch 2, whose lease began at `now`."""
    a = member(promised=(1, "a"))
    a.read(replace(document, leader="a"), 1, now)  # it was restarted, and tries at once
    swap = only(Swap, a.take())
    a.swapped(2, now)
    assert swap.document.epoch == 2
    a.promise_kept(2, now)
    a.answered("b", Answer(2, 1, NOTHING, 0), now)
    a.epoch_started(End(2, 1, b"x"), now)
    a.acked_by("b", 1, 2, 1, 0, now)
    assert a.state is State.PRIMARY
    effects = a.take()
    only(Accept, effects)
    assert only(Swap, effects).document.failovers[-1].leader == "a"
    a.swapped(3, now)
    a.take()
    return a


def spins(a: StateMachine, now: float) -> bool:
    """Whether a tick is due at once, again and again, and nothing comes of it."""
    for _ in range(3):
        due = a.deadline()
        if due is None or due > now:
            return False
        a.tick(now)
        a.take()
    return True


def test_who_has_begun_the_cluster_does_not_lead_epoch_0() -> None:
    a = member(kept=replace(DOCUMENT, epoch=0, leader=None, members={}))
    a.read(replace(DOCUMENT, epoch=0, leader=None), 1, 1.0)
    effects = a.take()
    assert not [effect for effect in effects if isinstance(effect, Say | StepDown)]
    assert only(Swap, effects).document.epoch == 1  # it takes part like everybody


def test_a_follower_that_may_not_try_waits_without_spinning() -> None:
    for a in (member(whole=False), member(kept=replace(DOCUMENT, paused=True))):
        a.read(a.document, 1, 1.0)
        a.take()
        assert not spins(a, 100.0)


def test_a_cluster_that_is_not_paused_any_more_elects_again() -> None:
    a = member()
    a.read(replace(DOCUMENT, paused=True), 1, 1.0)
    a.tick(100.0)
    assert "paused" in [effect.text for effect in a.take() if isinstance(effect, Say)][-1]
    a.tick(101.0)
    assert not [effect for effect in a.take() if isinstance(effect, Say)]  # once
    a.read(DOCUMENT, 2, 102.0)
    assert only(Swap, a.take()).document.leader == "a"


def test_a_renewal_is_not_stored() -> None:
    """Each member would sync a file for each renewal, and a promise would wait behind those on a slow disk."""
    a = member()
    a.read(DOCUMENT, 1, 1.0)
    a.take()
    a.read(DOCUMENT.renewed(), 2, 2.0)
    assert not [effect for effect in a.take() if isinstance(effect, Keep)]
    leader = primary()
    leader.tick(104.0)
    swap = only(Swap, leader.take())
    leader.swapped(9, 104.5)
    assert swap.document.renewals == 2
    assert not [effect for effect in leader.take() if isinstance(effect, Keep)]


def test_a_candidate_whose_promise_is_slow_waits_without_spinning() -> None:
    a = member(promised=(1, "a"))
    a.read(replace(DOCUMENT, leader="a"), 1, 1.0)
    a.swapped(2, 1.0)
    a.take()
    assert a.state is State.FENCING
    assert not spins(a, 2.0)


def test_a_swap_in_doubt_is_read_until_a_read_succeeds() -> None:
    a = primary()
    a.tick(104.0)
    only(Swap, a.take())
    a.unknown(104.5)
    only(Read, a.take())
    assert not spins(a, 105.0)
    for now in (105.0, 106.0):  # else it would never swap again
        a.unreachable(now)
        only(Read, a.take())
    a.read(a.document, a.version, 107.0)  # it was not made
    assert only(Swap, a.take()).document.renewals == a._document().renewals + 1


def test_fail_safe_mode_ends_with_a_renewal_and_does_not_spin() -> None:
    a = primary(replace(DOCUMENT, failsafe=True))
    a.tick(104.0)
    a.take()
    a.acked_by("b", 1, 2, 1, 1, 109.0)
    a.tick(110.5)
    assert a.failsafe_since == 110.5
    a.take()
    assert not spins(a, 110.5)
    a.unavailable(111.0)
    swap = only(Swap, a.take())
    a.read(replace(a._document()), a.version, 111.5)
    assert a.failsafe_since == 110.5  # a coordinator that answers reads alone has not renewed the lease
    assert not [effect for effect in a.take() if isinstance(effect, Say)]
    a.swapped(9, 112.0)
    assert a.failsafe_since is None
    assert swap.document.renewals == a._document().renewals


def test_fail_safe_mode_needs_voters_that_confirm() -> None:
    a = primary(replace(DOCUMENT, failsafe=True))
    a.tick(104.0)
    a.take()
    a.tick(110.5)  # the last word of a follower is older than a ttl
    only(StepDown, a.take())


def test_a_cluster_of_fewer_voters_than_the_floor_begins() -> None:
    alone = replace(DOCUMENT, epoch=0, leader=None, voters=("a",), floor=2)
    a = member(kept=None)
    a.read(alone, 1, 1.0)
    a.swapped(2, 1.0)
    a.promise_kept(1, 1.0)
    a.take()
    a.epoch_started(End(1, 1, b"x"), 1.0)
    assert only(Publish, a.take()).txid == 1
    assert quorum.may_promote(2, [("a",)], "a")
    assert not quorum.may_promote(2, [()], "a")
    assert quorum.held(2, [()], {"a": 1}) == 0




def test_a_change_of_voters_ends_when_both_sets_hold_what_was_durable_at_it() -> None:
    a = primary()
    a.moved(End(2, 9, b"y"), 100.0)
    a.acked_by("c", 1, 2, 9, 0, 100.0)  # a and c hold all of it, b does not
    assert only(Publish, a.take()).txid == 9
    assert a.remove("c", 100.0) is None
    assert only(Swap, a.take()).document.joint == ("a", "b")
    a.swapped(5, 100.0)
    assert not [effect for effect in a.take() if isinstance(effect, Swap)]  # published by a and c, not by a and b
    a.acked_by("b", 1, 2, 9, 0, 100.0)
    assert only(Swap, a.take()).document.voters == ("a", "b")


def test_a_removal_survives_a_swap_that_lost() -> None:
    a = primary()
    assert a.remove("c", 100.0) is None
    a.take()
    a.swapped(5, 100.0)
    assert only(Swap, a.take()).document.voters == ("a", "b")
    a.swapped(6, 100.0)
    assert "c" not in only(Swap, a.take()).document.members
    a.acked_by("c", 1, 2, 1, 0, 100.0)
    a.conflict(100.0)
    a.read(a.document, 7, 100.0)
    assert "c" not in only(Swap, a.take()).document.members  # and it does not become a voter again


def test_a_primary_that_is_not_a_voter_becomes_one() -> None:
    a = primary()
    a.read(replace(a._document(), voters=("b", "c")), 5, 100.0)
    assert only(Swap, a.take()).document.joint == ("b", "c", "a")


def test_a_candidate_stays_while_voters_copy_its_log() -> None:
    a = member(promised=(1, "a"))
    a.read(replace(DOCUMENT, leader="a"), 1, 1.0)
    a.swapped(2, 1.0)
    a.promise_kept(2, 1.0)
    a.answered("b", Answer(2, 1, NOTHING, 0), 1.0)
    a.epoch_started(End(2, 1, b"x"), 1.0)
    a.tick(4.5)
    a.swapped(3, 10.0)  # its lease is renewed
    a.acked_by("b", 1, 2, 0, 1, 10.0)  # it is there, and far behind
    a.take()
    a.tick(11.5)
    a.take()
    assert a.state is State.INHERITING
    assert not spins(a, 11.5)
    a.swapped(4, 20.0)
    a.tick(21.6)  # nobody was heard for a ttl
    assert a.state is not State.INHERITING


def test_what_was_inherited_is_published_with_the_first_record_of_the_epoch() -> None:
    inherited = End(1, 5, b"y")
    a = member(promised=(1, "a"), end=inherited)
    a.read(replace(DOCUMENT, leader="a"), 1, 1.0)
    a.swapped(2, 1.0)
    a.promise_kept(2, 1.0)
    a.answered("b", Answer(2, 1, inherited, 0), 1.0)
    a.epoch_started(End(2, 6, b"x"), 1.0)
    a.acked_by("b", 1, 2, 5, 0, 1.0)
    assert not [effect for effect in a.take() if isinstance(effect, Publish)]
    a.acked_by("b", 1, 2, 6, 0, 1.0)
    assert only(Publish, a.take()).txid == 6


def test_a_member_that_is_seeded_anew_promises_nothing_until_it_has_caught_up() -> None:
    a = member(promised=(1, "b"), end=End(1, 7, b"x"), published=5)
    a.read(DOCUMENT, 1, 1.0)
    a.take()
    assert not a.seeding(2)  # it does not follow that one
    assert a.seeding(1)
    assert only(Whole, a.take()) == Whole(False)
    a.matched(1, 7, 1.5)  # of the log that is about to be replaced
    assert not [effect for effect in a.take() if isinstance(effect, Acknowledge)]
    a.seeded(End(1, 5, b"w"), 5, 2.0)
    a.take()
    a.asked("c", 2, "request", 2.0)
    assert only(Reply, a.take()).answer is None
    a.connected(1, 7)
    a.matched(1, 6, 2.0)
    assert not a.whole
    a.matched(1, 7, 2.0)
    assert only(Whole, a.take()) == Whole(True)
    assert a.votes


def forces() -> StateMachine:
    """A follower of b that was ordered to lead by force, and tries."""
    a = member(promised=(1, "b"))
    a.read(DOCUMENT, 1, 0.0)
    a.take()
    assert a.take_over(1.0, force=True) is None
    assert only(Swap, a.take()).document.voters == ("a",)
    return a


def test_a_forced_promotion_is_for_the_cluster_that_the_operator_saw() -> None:
    """One that could not be made at once was made later, over a healthy primary, and took away what that had
    acknowledged."""
    a = forces()
    a.conflict(1.1)  # c was faster
    a.take()
    a.read(replace(DOCUMENT, epoch=2, leader="c", revision=1), 2, 1.2)
    effects = a.take()
    assert not [effect for effect in effects if isinstance(effect, Swap)]
    assert "c leads epoch 2 by now" in only(Say, effects).text
    a = forces()
    a.unavailable(2.0)
    assert "order it again" in only(Say, a.take()).text
    a.read(replace(DOCUMENT, renewals=900), 9, 4001.0)
    assert not [effect for effect in a.take() if isinstance(effect, Swap)]
    a = forces()
    a.unknown(1.5)  # it was not made, but nobody can be asked
    a.unreachable(2.0)
    a.take()
    a.read(replace(DOCUMENT, renewals=900), 9, 4001.0)
    assert not [effect for effect in a.take() if isinstance(effect, Swap)]
    a = forces()
    a.conflict(1.1)  # with a sign of life of the old leader that this member had not seen
    a.take()
    a.read(replace(DOCUMENT, renewals=1), 2, 1.2)
    assert only(Swap, a.take()).document.voters == ("a",)


def test_a_hand_over_is_known_while_the_store_is_being_closed() -> None:
    """It answered a candidate then, with an end of its log that nobody knew."""
    a = primary()
    a.acked_by("b", 1, 2, 1, 0, 100.5)
    a.take()
    assert a.switch_over("b", 101.0) is None
    a.drained(End(2, 1, b"x"), 101.1)
    a.failed("the disk failed", 101.2)
    a.take()
    a.swapped(9, 101.3)
    assert a.state is State.CLOSING
    a.asked("b", 3, "request", 101.4)
    a.promise_kept(3, 101.5)
    assert not [effect for effect in a.take() if isinstance(effect, Reply)]
    a.stepped_down(End(2, 2, b"y"), 1, 101.6)
    answer = only(Reply, a.take()).answer
    assert answer is not None
    assert answer.end.txid == 2


def test_what_was_to_be_shown_before_a_seeding_is_not_shown_after_it() -> None:
    """A member copied the state of another one whose log was shorter. Its driver showed the new log up to where the old
    one had been published, although too few voters held that."""
    a = member(promised=(1, "b"), published=62)
    a.read(DOCUMENT, 1, 0.0)
    assert a.seeding(1)
    assert a.published == 0  # the driver shows nothing above it
    a.seeded(End(1, 5, b"x"), 4, 1.0)
    assert a.published == 4


def test_a_leader_that_comes_while_a_state_is_copied_waits_for_it() -> None:
    """Its stream compared the log that was about to be replaced, and the member acknowledged what it then had not."""
    a = member(promised=(1, "b"), end=End(1, 7, b"x"), published=7)
    a.read(DOCUMENT, 1, 0.0)
    assert a.seeding(1)
    a.read(replace(DOCUMENT, epoch=2, leader="c", revision=1), 2, 1.0)
    a.promise_kept(2, 1.0)
    a.take()
    a.connected(2, 7)
    a.matched(2, 7, 1.1)
    assert not a.accepts(2)
    assert not a.whole
    a.seeded(End(1, 5, b"w"), 5, 2.0)
    a.matched(2, 5, 2.1)
    assert not a.whole
    a.connected(2, 7)
    a.matched(2, 7, 2.2)
    assert a.whole


def test_a_store_that_fails_while_a_state_is_copied_is_still_closed() -> None:
    a = member(promised=(1, "b"))
    a.read(DOCUMENT, 1, 0.0)
    assert a.seeding(1)
    a.failed("the disk failed", 0.5)
    a.seeded(End(1, 5, b"w"), 5, 1.0)
    assert a.state is State.CLOSING
    a.stepped_down(End(1, 5, b"w"), 5, 1.0)
    assert a.role == "follower"
    assert a.end.txid == 5


def test_a_member_that_waits_for_promises_can_be_forced() -> None:
    """It was told that it led already, or it forgot the order."""
    a = member(promised=(1, "b"))
    a.read(DOCUMENT, 1, 0.0)
    a.take()
    a.tick(50.0)
    ordinary = only(Swap, a.take()).document
    assert a.take_over(50.1, force=True) is None  # while it tries as usual
    a.swapped(2, 50.2)
    forced = only(Swap, a.take()).document
    assert (ordinary.voters, forced.voters) == (NAMES, ("a",))
    assert forced.epoch > ordinary.epoch
    a.swapped(3, 50.3)
    assert a.state is State.FENCING
    b = member("b", promised=(1, "c"))
    b.read(replace(DOCUMENT, leader="c"), 1, 0.0)
    b.tick(50.0)
    b.swapped(2, 50.1)
    b.promise_kept(2, 50.2)
    b.take()
    assert b.state is State.FENCING
    assert b.take_over(50.3, force=True) is None
    assert only(Swap, b.take()).document.voters == ("b",)


def test_what_was_cut_is_not_shown_and_nor_is_what_takes_its_place() -> None:
    """A follower that shows late had more to show than its log held after a cut, and then showed new records that too
    few voters held."""
    a = member(promised=(1, "b"), published=33)
    a.read(DOCUMENT, 1, 0.0)
    a.moved(End(1, 2, b"x"), 0.1)
    assert a.published == 2
