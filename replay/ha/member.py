"""A member of a cluster, as a state machine without I/O, clock or threads.

    state       what it does                                      leaves it when
    ----------  ------------------------------------------------  -----------------------------------------------------
    FOLLOWER    streams from the leader, publishes what the       the leader's lease has run out, and its own swap made
                leader says is published; answers who asks for    it leader; or the leader handed over to it
                a promise
    FENCING     leader in the document; asks voters to promise    enough have promised; or a higher epoch is seen
    FETCHING    copies what the best log has and its own lacks    done; or a higher epoch is seen
    STARTING    appends the first record of its epoch             it is durable
    INHERITING  serves followers                                  enough voters hold that first record
    PRIMARY     writes                                            a higher epoch, its lease is over, it hands over
    HANDING     primary that accepts nothing, and waits for its   the successor holds everything, and the swap is made;
                successor                                         or it takes too long: PRIMARY again
    CLOSING     closes its store, to open it as a follower's      the driver says that it is open again: FOLLOWER

Events come in as method calls, with the time `now` (monotonic seconds) if it matters. Effects go out: call `take` after
each event. All calls must be made one at a time. `tick` must be called at `deadline`, or earlier.

Safety never rests on time. A leader's lease only decides when somebody else tries. What protects the data is that each
voter promises, durably, to refuse older epochs before it answers, and that answers and acknowledgements overlap
(`quorum.py`). Inside an epoch this is Raft's rule about earlier terms: nothing inherited counts as published before the
epoch's own first record is held by enough voters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any

from . import quorum
from .document import ClusterDocument, MemberEntry
from .effects import (
    Accept,
    Acknowledge,
    Answer,
    Ask,
    Effect,
    End,
    Fetch,
    Follow,
    Hold,
    Keep,
    Poll,
    Promise,
    Publish,
    Read,
    Reply,
    Say,
    StartEpoch,
    StepDown,
    Swap,
    Unfollow,
    Whole,
)

RENEWALS = 3
"""How often a leader renews within a ttl."""
STAGGER_S = 0.05
"""Between the attempts of two voters to become leader, so that they seldom meet."""
BACK_OFF = 2
"""For how many ttls a member does not try to lead whose store has failed."""
ASK_S = 0.5
"""How often a candidate asks again those that have not answered."""
RECREATE = "holdfast cluster recreate, with the directory of a member"
HAND_OVER_S = 5.0
"""How long a primary waits for the member that it hands over to."""


class State(Enum):
    FOLLOWER = "follower"
    FENCING = "fencing"
    FETCHING = "fetching"
    STARTING = "starting"
    INHERITING = "inheriting"
    PRIMARY = "primary"
    HANDING = "handing over"
    CLOSING = "closing"

    __hash__ = object.__hash__  # it is looked up in sets at each event, and Enum's own hash is Python code


_LEADING = frozenset({State.FENCING, State.FETCHING, State.STARTING, State.INHERITING, State.PRIMARY, State.HANDING})
_SERVING = frozenset({State.INHERITING, State.PRIMARY, State.HANDING})
_WRITING = frozenset({State.PRIMARY, State.HANDING})
_TRYING = frozenset({State.FENCING, State.INHERITING})


class StateMachine:
    """See the module's text. All attributes are read-only to others.

    Attributes:
        name, entry: of this member; the entry is registered in the document.
        state: see the module's text.
        epoch: the epoch that it leads, if it leads.
        promised: it accepts nothing of an epoch below this; durable. `promised_to`: the leader of that epoch.
        end: of its log, durable.
        published: what it told its driver to show.
        whole: it has everything that it may ever have acknowledged. False for a new directory under a known name: until
            it has caught up, it promises nothing.
        document, version: as last read from the coordinator, or as kept from an earlier life (then `version` is None).
        following: (leader, epoch) of the stream that it asked for, or None.
        leader_watermark: up to where that leader has published, as it has last said.
        trouble: why this member takes no part, for people; or None.
    """

    def __init__(self, name: str, entry: MemberEntry, *, promised: tuple[int, str], end: End, published: int,
                 kept: ClusterDocument | None, whole: bool, nonce: Callable[[], str],
                 now_us: Callable[[], int]) -> None:
        """
        Args:
            name, entry: of this member.
            promised, end, published, kept, whole: what it had stored.
            nonce: makes a fresh one.
            now_us: the time for people, microseconds since the Unix epoch.
        """
        self.name = name
        self.entry = entry
        self.state = State.FOLLOWER
        self.epoch = 0
        self.promised, self.promised_to = promised
        self.end = end
        self.published = published
        self.whole = whole
        self.document = kept
        self.version: object = None
        self.following: tuple[str, int] | None = None
        self.trouble: str | None = None
        self.acked: dict[str, int] = {}
        self.watermark = 0
        self.failsafe_since: float | None = None
        self._nonce = nonce
        self._now_us = now_us
        self._kept = kept
        self._out: list[Effect] = []
        self._changed_at: float | None = None  # when the leader last gave a sign of life
        self._early: int | None = None  # the epoch whose leader a promotion set has lost
        self._lost: set[str] = set()
        self._pending: tuple[str, ClusterDocument, float] | None = None  # a swap under way: kind, document, since
        self._doubtful: tuple[str, ClusterDocument, float] | None = None  # a swap whose outcome is not known
        self._renewed_at = 0.0
        self._writing: tuple[int, str] | None = None  # a promise under way
        self._wanted: tuple[int, str] = promised
        self._stagger_s = 0.0
        self._requests: list[tuple[int, str, object]] = []
        self._answers: dict[str, Answer] = {}
        self._highest = 0  # the highest epoch that anybody said it has promised
        self._asked_at = 0.0
        self._first = 0  # the first record of the epoch that it leads
        self._heard: dict[str, float] = {}
        self._beats: dict[str, int] = {}
        self._generations: dict[str, int] = {}
        self._began_at = 0.0  # to lead, or when enough voters were last heard before it could
        self._stayed_at = 0.0  # in fail-safe mode: when it last saw that it may stay
        self._backs_off_until = float("-inf")
        self._gives_way_at = float("-inf")
        self._why = ""
        self._recorded = True
        self._joint_since: int | None = None
        self._removing: set[str] = set()
        self._to: str | None = None
        self._drained = False
        self._hand_over_until = 0.0
        self._match = 0
        self.leader_watermark = 0
        self._beat = 0
        self._whole_at: int | None = None
        self._seeding = False  # another state is about to take the place of the one here
        self._leader_heard_at = float("-inf")
        self._told_to_lead = self._forced = False
        self._warned: int | None = None  # the epoch whose leader gave no sign of life while the cluster was paused

    # --- what others ask ------------------------------------------------------------------------------------------

    def take(self) -> list[Effect]:
        """The effects since the last call, to be carried out in order."""
        out, self._out = self._out, []
        return out

    @property
    def role(self) -> str:
        """"primary", "candidate" or "follower"."""
        if self.state in _WRITING:
            return "primary"
        return "candidate" if self.state in _LEADING else "follower"

    @property
    def serving(self) -> int:
        """The epoch whose log followers may stream from here; 0 if none."""
        return self.epoch if self.state in _SERVING else 0

    @property
    def registered(self) -> bool:
        """Whether the document has this opening of the member. Before that, its answers do not count."""
        return self.document is not None and self.document.members.get(self.name) == self.entry

    @property
    def votes(self) -> bool:
        """Whether its answers count now."""
        document = self.document
        return document is not None and self.whole and self.trouble is None and any(
            self.name in voters for voters in document.sets)

    def accepts(self, epoch: int) -> bool:
        """Whether records of the stream of `epoch` may be appended here now."""
        return (self.state is State.FOLLOWER and self.following is not None and self.following[1] == epoch
                and epoch == self.promised == self._wanted[0] and not self._seeding)

    def deadline(self) -> float | None:
        """When `tick` must be called next, or None. O(1)."""
        document, due = self.document, []
        if document is None or self.version is None:
            return None
        ttl, swapping = document.ttl, self._pending is not None or self._doubtful is not None
        if self.state in _LEADING:
            if not swapping:
                due.append(self._renewed_at + ttl / RENEWALS)
            due.append(self._renewed_at + ttl if self.failsafe_since is None else self._stayed_at + ttl / RENEWALS)
            if self.state is State.FENCING and self.promised == self.epoch:
                due.append(self._asked_at + ASK_S)
            if self.state in _TRYING:
                due.append(self._began_at + ttl)
            if self.state is State.HANDING and not swapping:
                due.append(self._hand_over_until)
        elif (self.state is State.FOLLOWER and self._changed_at is not None and not swapping and self.votes
              and not self.entry.no_failover and not (document.paused and self._warned == document.epoch)):
            due.append(max(self._silent_since() + ttl + self._stagger_s, self._backs_off_until))
        return min(due, default=None)

    def status(self) -> dict[str, Any]:
        """For people and programs, as plain values. O(members)."""
        document = self.document
        return {"name": self.name, "role": self.role, "state": self.state.value, "epoch": self.epoch or self.promised,
                "serving": self.serving,
                "promised": self.promised, "end": [self.end.epoch, self.end.txid, self.end.chain.hex()],
                "published": self.published, "leader": None if document is None else document.leader,
                "following": self.following, "whole": self.whole, "votes": self.votes, "trouble": self.trouble,
                "generation": self.entry.generation, "failsafe": self.failsafe_since is not None,
                "lost": self._lost_epoch(), "acked": dict(self.acked) if self.state in _SERVING else {}}

    def heard_from(self, now: float) -> dict[str, tuple[int, float]]:
        """Of each member that this one has heard from as leader of its epoch: up to where it holds the log, and how
        many seconds ago it was heard. O(members)."""
        return {name: (txid, now - self._heard[name]) for name, txid in self.acked.items() if name in self._heard}

    def _lost_epoch(self) -> int | None:
        return self._early if self.name in self._lost else None

    # --- the coordinator ------------------------------------------------------------------------------------------

    def read(self, document: ClusterDocument | None, version: object, now: float) -> None:
        """The cluster document, as the coordinator has it."""
        doubtful, self._doubtful = self._doubtful, None
        if not self._usable(document):
            if self.state in _LEADING:
                self._step_down("the coordinator has no document in which this member leads")
            return
        assert document is not None
        self.trouble = None
        before = self.document
        self.version = version
        if (self._changed_at is None or before is None
                or (before.epoch, before.leader, before.renewals) != (document.epoch, document.leader,
                                                                      document.renewals)):
            self._changed_at = now
        own = doubtful is not None and doubtful[1].nonce == document.nonce and doubtful[1].epoch == document.epoch
        if before is not None and before.epoch != document.epoch:
            self._lost.clear()
            if not own:
                self._told_to_lead = False  # it was ordered when another one led
                self._drop_force(f"{document.leader} leads epoch {document.epoch} by now")
        self._adopt(document)
        if doubtful is not None and own and doubtful[1].renewals <= document.renewals:
            self._succeeded(doubtful[0], doubtful[2], now)
        self._look(now)

    def unreachable(self, now: float) -> None:
        """The coordinator could not be read. Until it was, a doubtful swap stays doubtful."""
        self._drop_force("the coordinator does not answer")
        if self._doubtful is not None or self.document is None:
            self._out.append(Read())
        self._look(now)

    def _usable(self, document: ClusterDocument | None) -> bool:
        """Whether this is a document of this cluster that is not older than what this member has seen."""
        kept = self._kept
        if document is None:
            if kept is not None:
                self._refuse("the coordinator has lost the cluster's document; this member does not begin the cluster "
                             f"anew, because another member may hold more. To go on: {RECREATE}")
            return False
        if kept is not None and (document.store_id != kept.store_id or document.cluster != kept.cluster):
            self._refuse(f"the coordinator's document is of cluster {document.cluster} with store "
                         f"{document.store_id[:8]}; this member is of {kept.cluster} with store {kept.store_id[:8]}")
            return False
        if kept is not None and (document.epoch < kept.epoch or document.revision < kept.revision):
            self._refuse(f"the coordinator's document is revision {document.revision} of epoch {document.epoch}, and "
                         f"this member has seen revision {kept.revision} of epoch {kept.epoch}: the coordinator was "
                         f"set back. To go on: {RECREATE}")
            return False
        if kept is not None and self.name in kept.members and self.name not in document.members:
            self._refuse(f"{self.name} was removed from the cluster; to join again, begin with an empty directory")
            return False
        entry, own = document.members.get(self.name), self.entry
        if entry is not None and (entry.generation > own.generation
                                  or (entry.generation == own.generation and entry.instance != own.instance)):
            self._refuse(f"this is opening number {own.generation} of the directory of member {self.name}, and the "
                         f"cluster knows of number {entry.generation} at {entry.address}: this directory is a copy, or "
                         "was set back, or another process has taken the name. To go on: begin with an empty directory")
            return False
        return True

    def _refuse(self, why: str) -> None:
        if self.trouble != why:
            self.trouble = why
            self._say(logging.ERROR, why)
        if self.following is not None:
            self.following = None
            self._out.append(Unfollow())

    def _adopt(self, document: ClusterDocument) -> None:
        """Take over a document. It is stored if anything but the leader's sign of life has changed."""
        self.document = document
        self._stagger_s = self._stagger(document)
        self._removing &= document.members.keys()
        if self._kept is None or replace(document, renewals=self._kept.renewals) != self._kept:
            self._kept = document
            self._out.append(Keep(document))

    def _swap(self, kind: str, document: ClusterDocument, now: float) -> None:
        assert self._pending is None
        own = self.document
        if own is None or replace(document, renewals=own.renewals) != own:  # a renewal alone need not be stored
            document = replace(document, revision=document.revision + 1)
        self._pending = kind, document, now
        assert self.version is not None
        self._out.append(Swap(self.version, document))

    def swapped(self, version: object, now: float) -> None:
        """The swap was made."""
        assert self._pending is not None
        kind, document, since = self._pending
        self._pending = None
        before, self.version = self.document, version
        if before is None or (before.epoch, before.leader, before.renewals) != (
                document.epoch, document.leader, document.renewals):
            self._changed_at = now
        self._adopt(document)
        self._succeeded(kind, since, now)
        self._look(now)

    def conflict(self, now: float) -> None:
        """Somebody else has swapped since this member has read."""
        self._pending = None
        self._out.append(Read())

    def unknown(self, now: float) -> None:
        """The swap may or may not have been made: the next read tells."""
        self._doubtful, self._pending = self._pending, None
        self._out.append(Read())

    def unavailable(self, now: float) -> None:
        """The swap was not made."""
        self._pending = None
        self._drop_force("the coordinator does not answer")
        self._look(now)

    def _succeeded(self, kind: str, since: float, now: float) -> None:
        if kind == "acquire" and self.state is State.FOLLOWER:
            if self._forced and self._document().voters != (self.name,):
                return  # the order came while it tried as usual: `_look` tries by force
            self._lead(since)
        elif kind == "hand over" and self.state in _LEADING:
            self._step_down(f"it has handed over to {self._to}")
        elif kind == "renew" and self.state in _LEADING:
            self._renewed_at = max(self._renewed_at, since)
            if self.failsafe_since is not None and now < self._renewed_at + self._document().ttl:
                self.failsafe_since = None
                self._say(logging.WARNING, "the lease was renewed at the coordinator: fail-safe mode ends")
            self._recorded = self._recorded or any(f.epoch == self.epoch for f in self._document().failovers)

    # --- time -----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._look(now)

    def _look(self, now: float) -> None:
        """Do what the document and the time ask for. May be called at any moment."""
        document = self.document
        if document is None or self.version is None or self.trouble is not None or self.state is State.CLOSING:
            return
        if self.state in _LEADING:
            if document.epoch != self.epoch or document.leader != self.name:
                self._step_down(f"{document.leader} leads epoch {document.epoch}")
            else:
                self._look_as_leader(document, now)
            return
        if document.leader == self.name and document.epoch > self._wanted[0] and self.whole and not self._forced:
            self._why = f"{document.failovers[-1].leader} handed over" if document.failovers else "it was named"
            self._lead(now)
            return
        self._look_as_follower(document, now)

    def _look_as_follower(self, document: ClusterDocument, now: float) -> None:
        leader = document.leader
        if leader is not None and leader != self.name and document.epoch >= self._wanted[0]:
            self._want((document.epoch, leader))
            entry = document.members.get(leader)
            if self.promised == document.epoch and entry is not None and self.following != (leader, document.epoch):
                self.following = leader, document.epoch
                self._match = self.leader_watermark = self._beat = 0
                self._out.append(Follow(leader, entry.address, document.epoch))
        if self._pending is not None or self._doubtful is not None:
            return
        if document.members.get(self.name) != self.entry:
            self._swap("register", document.with_member(self.name, self.entry), now)
        elif self._may_try(document, now):
            epoch = max(document.epoch, self._wanted[0], self._highest) + 1
            self._why = self._reason(leader)
            led = document.led_by(self.name, nonce=self._nonce(), epoch=epoch)
            self._swap("acquire", led.forced() if self._forced else led, now)

    def _reason(self, leader: str | None) -> str:
        if self._forced:
            return "an operator forced it, without the promises of the other voters"
        if self._told_to_lead:
            return "an operator asked for it"
        if leader is None:
            return "there was none"
        return "it was restarted" if leader == self.name else f"{leader} gave no sign of life"

    def _may_try(self, document: ClusterDocument, now: float) -> bool:
        """Whether to try to become leader now."""
        if self._forced:
            return True
        if not self.votes or self._changed_at is None or now < self._backs_off_until:
            return False
        over = now >= self._silent_since() + document.ttl + self._stagger_s
        early = self._early == document.epoch and quorum.may_promote(document.floor, document.sets, self._lost)
        own = document.leader == self.name or document.leader is None
        if self._told_to_lead:
            return True
        if not (over or early or own) or self.entry.no_failover:
            return False
        if document.paused and not own:
            if self._warned != document.epoch:
                self._warned = document.epoch
                self._say(logging.WARNING, f"the primary of epoch {document.epoch} gives no sign of life; nothing is "
                                           "done about it, because the cluster is paused")
            return False
        return True

    def _silent_since(self) -> float:
        """When the leader last gave a sign of life: at the coordinator, or here in fail-safe mode, since it then stays
        without the coordinator."""
        assert self._changed_at is not None
        return max(self._changed_at, self._leader_heard_at) if self._document().failsafe else self._changed_at

    def _stagger(self, document: ClusterDocument) -> float:
        """By how much later than others this member tries to become leader, seconds."""
        if document.leader is None or document.leader == self.name:
            return 0.0
        order = sorted((n for n in document.electorate if n != document.leader),
                       key=lambda n: (-document.members[n].priority, n))
        return STAGGER_S * (order.index(self.name) if self.name in order else len(order))

    def _look_as_leader(self, document: ClusterDocument, now: float) -> None:
        if now >= self._renewed_at + document.ttl:
            if not self._may_stay(document, now):
                self._step_down("it could not renew its lease at the coordinator")
                return
            self._stayed_at = now
            if self.failsafe_since is None:
                self.failsafe_since = now
                self._say(logging.WARNING, "the coordinator does not answer: fail-safe mode begins, and this primary "
                                           "stays while enough voters confirm its epoch")
        if self.state is State.INHERITING and self._hears_enough(document, now):
            self._began_at = now  # voters that have much to copy are given the time
        if self.state in _TRYING and now >= self._began_at + document.ttl:
            self._backs_off_until = now + document.ttl
            self._step_down("too few voters answer")
            return
        if (self.state is State.HANDING and now >= self._hand_over_until and self._pending is None
                and self._doubtful is None):
            self._resume()
        if self.state is State.FENCING and self.promised == self.epoch and now >= self._asked_at + ASK_S:
            self._ask(document, now)
        if self._pending is None and self._doubtful is None:
            if not self._recorded and self.state in _WRITING:
                self._swap("renew", document.renewed().recording(self.name, self._why, self._now_us()), now)
            elif self.state is State.HANDING and self._drained and self._holds_all(self._to):
                assert self._to is not None
                self._swap("hand over", document.led_by(self._to, nonce=self._nonce(), epoch=document.epoch + 1), now)
            elif now >= self._renewed_at + document.ttl / RENEWALS:
                self._swap("renew", document.renewed(), now)
            elif self.state is State.PRIMARY:
                self._look_at_voters(document, now)

    def _may_stay(self, document: ClusterDocument, now: float) -> bool:
        """Fail-safe mode: whether enough voters have confirmed this epoch within the ttl. If one copy is enough to
        acknowledge, all must."""
        if not document.failsafe or self.state not in _SERVING:
            return False
        if quorum.copies(document.floor, document.voters) == 1:
            return set(document.electorate) <= self._recent(document, now)
        return self._hears_enough(document, now)

    def _recent(self, document: ClusterDocument, now: float) -> set[str]:
        """Who has confirmed this epoch within the ttl."""
        return {name for name, at in self._heard.items() if now - at < document.ttl} | {self.name}

    def _hears_enough(self, document: ClusterDocument, now: float) -> bool:
        return quorum.confirmed(document.floor, document.sets, self._recent(document, now))

    # --- promises -------------------------------------------------------------------------------------------------

    def _want(self, promise: tuple[int, str]) -> None:
        """See to it that this is promised, durably. From this moment on, nothing of an older epoch is accepted."""
        if promise[0] > self._wanted[0]:
            self._wanted = promise
            if self.following is not None and self.following[1] < promise[0]:
                self.following = None
                self._out.append(Unfollow())
        if self._writing is None and self._wanted[0] > self.promised:
            self._writing = self._wanted
            self._out.append(Promise(*self._writing))

    def promise_kept(self, epoch: int, now: float) -> None:
        """The promise is durable."""
        assert self._writing is not None
        assert self._writing[0] == epoch
        self.promised, self.promised_to = self._writing
        self._writing = None
        self._want(self._wanted)
        self._reply()
        if self.state is State.FENCING and self.promised == self.epoch and self.document is not None:
            self._answers = {self.name: self._answer()}
            self._ask(self.document, now)
            self._count(now)
        self._look(now)

    def asked(self, name: str, epoch: int, request: object, now: float) -> None:
        """`name`, who leads `epoch` in the document, asks for a promise. `request` comes back in the `Reply`."""
        if (epoch < self._wanted[0] or (epoch == self._wanted[0] and name != self._wanted[1]) or not self.whole
                or self.trouble is not None):
            self._out.append(Reply(request, None, self._wanted[0]))
            return
        if self.state in _LEADING and epoch > self.epoch:
            self._step_down(f"{name} asks for a promise to epoch {epoch}")
        self._want((epoch, name))
        self._requests.append((epoch, name, request))
        self._reply()

    def _reply(self) -> None:
        """Answer the requests that can be answered now. While the store is being closed, its log has no known end."""
        if self.state is State.CLOSING:
            return
        requests, self._requests = self._requests, []
        for epoch, name, request in requests:
            if epoch < self._wanted[0]:
                self._out.append(Reply(request, None, self._wanted[0]))
            elif (self.promised, self.promised_to) == (epoch, name):
                self._out.append(Reply(request, self._answer(), self.promised))
            else:
                self._requests.append((epoch, name, request))

    def _answer(self) -> Answer:
        return Answer(self.promised, self.entry.generation, self.end, self.published)

    # --- becoming primary -----------------------------------------------------------------------------------------

    def _lead(self, since: float) -> None:
        """The document names this member as leader of a new epoch: fence the epochs before."""
        document = self._document()
        if self.following is not None:
            self.following = None
            self._out.append(Unfollow())
        self.state, self.epoch, self._told_to_lead, self._forced = State.FENCING, document.epoch, False, False
        self._renewed_at = self._asked_at = self._began_at = since
        self._answers, self.acked, self._heard, self._beats, self._generations = {}, {}, {}, {}, {}
        self._first = self.watermark = 0
        self._joint_since, self._recorded = None, False
        self._say(logging.INFO, f"it leads epoch {self.epoch}, and asks the voters to promise")
        self._want((self.epoch, self.name))

    def _ask(self, document: ClusterDocument, now: float) -> None:
        self._asked_at = now
        for name in document.electorate:
            if name != self.name and name not in self._answers:
                self._out.append(Ask(name, document.members[name].address, self.epoch))

    def answered(self, name: str, answer: Answer, now: float) -> None:
        """A voter has promised."""
        document = self.document
        if self.state is not State.FENCING or answer.epoch != self.epoch or document is None:
            return
        entry = document.members.get(name)
        if entry is None or answer.generation != entry.generation:
            return  # a copy of its directory answers, or it is not registered yet
        self._answers[name] = answer
        self._count(now)

    def refused(self, name: str, promised: int, now: float) -> None:
        """A voter has promised a higher epoch, or may not promise now."""
        self._highest = max(self._highest, promised)
        if self.state in _LEADING and promised > self.epoch:
            self._step_down(f"{name} has promised epoch {promised}")
            self._out.append(Read())

    def _count(self, now: float) -> None:
        document = self._document()
        if not quorum.may_promote(document.floor, document.sets, self._answers):
            return
        best = max(self._answers, key=lambda n: (self._answers[n].end.rank, n == self.name))
        if self._answers[best].end.rank > self.end.rank:
            self.state = State.FETCHING
            self._out.append(Fetch(best, document.members[best].address, self._answers[best].end))
        else:
            self._start_epoch()

    def fetched(self, end: End, now: float) -> None:
        """The log here now equals the best one, up to its end."""
        self.end = end
        if self.state is State.FETCHING:
            self._start_epoch()

    def fetch_failed(self, name: str, now: float) -> None:
        """The member with the best log has gone, for instance: ask again, and do without its answer."""
        if self.state is State.FETCHING:
            self.state = State.FENCING
            self._answers = {self.name: self._answer()}
            self._asked_at = now
            self._look(now)

    def _start_epoch(self) -> None:
        self.state = State.STARTING
        self._out.append(StartEpoch(self.epoch, self._document().branch))

    def epoch_started(self, end: End, now: float) -> None:
        """The first record of the epoch is durable here."""
        self.end = end
        if self.state is not State.STARTING:
            return
        self.state, self._first, self._began_at = State.INHERITING, end.txid, now
        self.acked[self.name] = end.txid
        self._advance(now)

    # --- leading --------------------------------------------------------------------------------------------------

    def moved(self, end: End, now: float) -> None:
        """The durable end of the log here has moved. A follower reports it before it reports `matched`."""
        self.end = end
        if self.state is State.FOLLOWER:  # what was cut is not to be shown, nor what comes in its place
            self.published = min(self.published, end.txid)
        if self.state in _SERVING and self.promised == self.epoch == self._wanted[0]:
            self.acked[self.name] = end.txid
            self._advance(now)

    def acked_by(self, name: str, generation: int, epoch: int, txid: int, beat: int, now: float) -> None:
        """A follower holds the log of this epoch up to `txid`, durably, and has heard the heartbeat `beat`."""
        document = self.document
        if self.state not in _SERVING or epoch != self.epoch or document is None:
            return
        entry = document.members.get(name)
        if entry is None or generation != entry.generation:
            return  # a copy of its directory, or not registered yet
        if generation > self._generations.get(name, generation):
            self.acked.pop(name, None)  # it was opened anew: what it held before does not count
        self._generations[name] = generation
        self._heard[name] = now
        self._beats[name] = max(beat, self._beats.get(name, 0))
        if txid > self.acked.get(name, -1):
            self.acked[name] = txid
            self._advance(now)

    def confirms(self, beat: int) -> bool:
        """Whether enough voters have confirmed this epoch since the heartbeat `beat` was sent. So at that moment, no
        later primary had published anything."""
        document = self.document
        return (self.state in _WRITING and document is not None and self.promised == self.epoch == self._wanted[0]
                and quorum.confirmed(document.floor, document.sets,
                                     [self.name, *(name for name, echoed in self._beats.items() if echoed >= beat)]))

    def _advance(self, now: float) -> None:
        """Publish what enough voters hold."""
        document = self._document()
        sets = document.sets
        if self._doubtful is not None or (self._pending is not None and self._pending[0] in ("joint", "new voters")):
            change = self._doubtful or self._pending
            assert change is not None
            sets = (*sets, *change[1].sets)  # the change may have been made: both rules hold
        held = min(quorum.held(document.floor, sets, self.acked), self.end.txid)
        if held >= self._first and held > self.watermark:
            self.watermark = self.published = held
            self._out.append(Publish(held))
            if self.state is State.INHERITING:
                self.state = State.PRIMARY
                self._out.append(Accept())
                self._say(logging.INFO, f"it is primary in epoch {self.epoch}, from transaction {self._first} on")
        if self.state is State.HANDING or self._joint_since is not None or not self._recorded:
            self._look(now)

    def _look_at_voters(self, document: ClusterDocument, now: float) -> None:
        """Change the voters one at a time: add a member that has caught up, drop one that shall not vote, or end the
        change under way."""
        if document.joint is not None:
            if self._joint_since is None:  # whatever was durable when the change was made is at or below this
                self._joint_since = self.end.txid
            # Not the watermark: the old voters alone may have brought that up to here.
            if quorum.held(document.floor, document.sets, self.acked) >= self._joint_since:
                self._joint_since = None
                self._swap("new voters", replace(document, voters=document.joint, joint=None), now)
            return
        for name in document.voters:
            if name != self.name and (name in self._removing or document.members[name].no_sync):
                self._say(logging.INFO, f"{name} ceases to be a voter")
                self._swap("joint", replace(document, joint=tuple(n for n in document.voters if n != name)), now)
                return
        for name, entry in document.members.items():
            if name in document.voters:
                continue
            if name in self._removing:
                self._swap("remove", document.without_member(name), now)
                return
            known = entry.generation if name == self.name else self._generations.get(name)
            if (not entry.no_sync and known == entry.generation
                    and self.acked.get(name, 0) >= max(self.watermark, self._first)):
                self._say(logging.INFO, f"{name} has caught up, and becomes a voter")
                self._swap("joint", replace(document, joint=(*document.voters, name)), now)
                return

    def remove(self, name: str, now: float) -> str | None:
        """Let a member leave the cluster. Returns why not, or None if it has begun."""
        document = self.document
        if self.state is not State.PRIMARY or document is None:
            return f"{self.name} is not the primary"
        if name == self.name:
            return "it is the primary: switch over to another member first"
        if name not in document.members:
            return f"the cluster has no member {name}"
        self._removing.add(name)
        self._look(now)
        return None

    def take_over(self, now: float, *, force: bool = False) -> str | None:
        """Try to become primary now, even if the present one gives signs of life. It succeeds only if enough voters
        promise. With `force` nobody else needs to: this member counts alone at first, and what it lacks is lost to the
        cluster. The voters come back one by one. Returns why not, or None if it has begun."""
        if self.state is State.FENCING and force:
            self._step_down("an operator forces it to lead without the promises that it waits for")
        if self.state is not State.FOLLOWER:
            return f"{self.name} leads already, or opens its store"
        if self.trouble is not None:
            return f"{self.name} takes no part: {self.trouble}"
        if self.document is None or self.version is None:
            return f"{self.name} has not read the cluster's document: the coordinator does not answer"
        if force:
            if not self.whole:
                return f"{self.name} has not caught up since its directory was empty"
            self._say(logging.WARNING, "an operator forces this member to lead: what it lacks is lost to the cluster")
        elif not self.votes:
            return f"{self.name} is not a voter, or has not caught up"
        self._told_to_lead, self._forced, self._backs_off_until = True, force, float("-inf")
        self._look(now)
        return None

    def _drop_force(self, why: str) -> None:
        """An order to lead by force is for the cluster that the operator saw. Later, it would take away what another
        primary has acknowledged meanwhile."""
        if self._forced:
            self._say(logging.WARNING, f"it does not lead by force: {why}. To go on: look, and order it again")
            self._told_to_lead = False
        self._forced = False

    # --- handing over ---------------------------------------------------------------------------------------------

    def switch_over(self, to: str, now: float) -> str | None:
        """Hand over to another voter. Returns why not, or None if it has begun."""
        document = self.document
        if self.state is not State.PRIMARY or document is None:
            return f"{self.name} is not the primary"
        if to == self.name or to not in document.voters or document.joint is not None:
            return f"{to} is not another voter of this cluster, or its voters are being changed"
        if to not in self.acked or now - self._heard.get(to, 0.0) > document.ttl:
            return f"{to} does not follow at present"
        self._to, self._drained, self._hand_over_until = to, False, now + HAND_OVER_S
        self.state = State.HANDING
        self._out.append(Hold())
        return None

    def give_way(self, now: float) -> None:
        """This primary has no room for transactions: hand over to the voter that holds most, if one may lead. Only now
        and then, because the others may have no room either."""
        document = self.document
        if self.state is not State.PRIMARY or document is None or now < self._gives_way_at:
            return
        self._gives_way_at = now + BACK_OFF * document.ttl
        others = (n for n in document.voters if n != self.name and not document.members[n].no_failover)
        for name in sorted(others, key=lambda n: (-self.acked.get(n, 0), -document.members[n].priority, n)):
            if self.switch_over(name, now) is None:
                self._say(logging.WARNING, f"it has no room for transactions, and hands over to {name}")
                return

    def _holds_all(self, name: str | None) -> bool:
        return name is not None and self.watermark == self.end.txid == self.acked.get(name, 0)

    def drained(self, end: End, now: float) -> None:
        """After `Hold`: no transaction is open any more, and the log ends here, durably."""
        self.moved(end, now)
        self._drained = self.state is State.HANDING
        self._look(now)

    def _resume(self) -> None:
        self.state, self._to = State.PRIMARY, None
        self._out.append(Accept())
        self._say(logging.WARNING, "the switch-over did not succeed in time, and it goes on as primary")

    # --- stepping down --------------------------------------------------------------------------------------------

    def _step_down(self, why: str) -> None:
        self._say(logging.WARNING, f"it gives up epoch {self.epoch}: {why}")
        if self.state in _WRITING or self.state in (State.FETCHING, State.STARTING):  # the log is being written
            self._close(why)
            return
        self._forget_epoch()
        self.state = State.FOLLOWER
        self._reply()

    def _close(self, why: str) -> None:
        self._forget_epoch()
        if self.following is not None:
            self.following = None
            self._out.append(Unfollow())
        self.state = State.CLOSING
        self._out.append(StepDown(why))

    def _forget_epoch(self) -> None:
        self.epoch, self.acked, self._answers, self._joint_since, self._to = 0, {}, {}, None, None
        self._removing.clear()
        self.failsafe_since = None

    def failed(self, why: str, now: float) -> None:
        """The store takes no more writes, because its disk failed. Others are given the time to lead: if its disk fails
        each time that it tries, this member would else keep the lease for ever, and take nothing."""
        if self.document is not None:
            self._backs_off_until = now + BACK_OFF * self.document.ttl
        if self.state is not State.CLOSING:
            self._close(f"its store failed: {why}")

    def stepped_down(self, end: End, published: int, now: float) -> None:
        """The store is open again, as a follower's."""
        self.end, self.published = end, published
        self.state = State.FOLLOWER
        self._reply()
        self._look(now)

    # --- following ------------------------------------------------------------------------------------------------

    def connected(self, epoch: int, leader_end: int) -> None:
        """The stream of `epoch` has begun, and the leader's log ended at transaction `leader_end` then."""
        if self.accepts(epoch) and not self.whole:
            self._whole_at = leader_end

    def seeding(self, epoch: int) -> bool:
        """The state of the leader of `epoch` is to take the place of the one here. Whether it may. What this member
        has acknowledged may not be in it, so until it has caught up, it promises nothing."""
        if not self.accepts(epoch):
            return False
        self.whole, self._whole_at, self._match = False, None, 0
        self.published, self._seeding = 0, True  # until `seeded`, nothing is shown, and no stream is compared or taken
        self._out.append(Whole(False))
        return True

    def seeded(self, end: End, published: int, now: float) -> None:
        """The copied state is in force, or after a failure, the one that was here before. Unless the store is about to
        be closed: then `stepped_down` comes."""
        self._seeding = False
        if self.state is State.FOLLOWER:
            self.end, self.published = end, published
        self._look(now)

    def matched(self, epoch: int, txid: int, now: float) -> None:
        """In the stream of `epoch`, the log here equals the leader's up to `txid`, and is durable up to there."""
        if not self.accepts(epoch):
            return
        self._match = max(self._match, txid)
        self._lost.discard(self.name)
        if self._whole_at is not None and txid >= self._whole_at:
            self.whole, self._whole_at = True, None
            self._out.append(Whole(True))
        self._out.append(Acknowledge(epoch, self._match, self._beat))
        self._show()

    def heard(self, epoch: int, watermark: int, beat: int, now: float) -> None:
        """The leader of `epoch` says, in its heartbeat number `beat`, that everything up to `watermark` is published.
        """
        if not self.accepts(epoch):
            return
        self._leader_heard_at = now
        self.leader_watermark = max(self.leader_watermark, watermark)
        self._beat = beat
        self._out.append(Acknowledge(epoch, self._match, beat))
        self._show()

    def _show(self) -> None:
        """Publish what the leader has published, as far as the log here is known to equal its log."""
        upto = min(self.leader_watermark, self._match)
        if upto > self.published:
            self.published = upto
            self._out.append(Publish(upto))

    def lost(self, epoch: int, now: float) -> None:
        """Nothing listens at the address of the leader of `epoch` any more, so its process has died. If enough voters
        see that, they need not wait for the lease."""
        document = self.document
        if self.following is None or self.following[1] != epoch or document is None or document.epoch != epoch:
            return
        self._early = epoch
        self._lost.add(self.name)
        for name in document.electorate:
            if name not in (self.name, document.leader):
                self._out.append(Poll(name, document.members[name].address, epoch))
        self._look(now)

    def polled(self, name: str, lost: int | None, now: float) -> None:
        """Another voter has lost the leader of epoch `lost` too; None: it has not."""
        document = self.document
        if lost is not None and document is not None and lost == document.epoch == self._early:
            self._lost.add(name)
            self._look(now)

    # --- words ----------------------------------------------------------------------------------------------------

    def _document(self) -> ClusterDocument:
        assert self.document is not None
        return self.document

    def _say(self, level: int, text: str) -> None:
        self._out.append(Say(level, text))
