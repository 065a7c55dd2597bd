"""The members' protocol as a model: promotion, fencing, publishing, cutting, and a change of voters.

What is in a state:

- the coordinator's document: the epoch and its voters, old and new if a change is under way;
- for each epoch: who leads it, the log that its leader has sent, up to where each member has acknowledged in it, with
  which end of its log each member has promised it, and what its leader has published;
- for each member: the epoch that it has promised, its log, how much of it is shown, and what part it plays;
- what was published first, which is what the invariants compare with.

A log is a tuple of (epoch, number): number 0 is the first record of an epoch, others are transactions.

Messages need no set of their own. What was sent in an epoch stays in the state, and whoever it is for may read it at
any later step, or never: so it may be late, lost, doubled and overtaken. An older acknowledgement, answer or watermark
of the same epoch says nothing that the newest does not, and was the newest once. Appending, syncing and acknowledging
is one step: a crash in between has the effect of a crash before, or of a lost acknowledgement. Comparing logs and
acknowledging what they share is one step likewise. The stored watermark may be any older one, so an opening shows what
was shown before, or nothing. Time is not modelled: a lease may end at any step, and whoever leads may go on for ever.
Who steps down does nothing until it promises a later epoch, so that needs no step. Members are alike until they
have led: the first leader is member 0, and so on.

`Fault` names rules that can be broken. Each has a history in which something goes wrong, which the search finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from itertools import combinations
from typing import NamedTuple

from .explore import Broken

Entry = tuple[int, int]
Log = tuple[Entry, ...]
Voters = tuple[int, ...]

FOLLOWER, CANDIDATE, LEADER = range(3)


class Fault(Enum):
    """A rule that is broken."""

    SHOWS_WITHOUT_MATCH = "a follower shows what the leader has published, before it has compared logs with it"
    SHOWS_ALL_WHEN_OPENED = "an opening shows the whole log, not only what was published"
    FORGETS_PROMISES = "a promise is not synced, so a crash undoes it"
    ELECTS_WITHOUT_PROMISES = "a candidate asks where logs end, and for no promise"
    DOES_NOT_FETCH = "a candidate leads with a log that is not the best of the answers"
    REUSES_AN_EPOCH = "a candidate whose swap has an unknown outcome leads the epoch that is there"
    ELECTS_BY_PROMISE = "answers are compared by the epochs that were promised, not by those of the last records"
    DOES_NOT_FENCE = "a member accepts records of an epoch below its promise"
    COUNTS_OLDER_RECORDS = "a leader publishes older records by counting copies, before its own first record"
    TOO_FEW_PROMISES = "one promise less suffices"
    TOO_FEW_COPIES = "one copy less suffices"
    CHANGES_IN_ONE_STEP = "the voters are replaced without a time in which both sets must agree"
    ENDS_A_CHANGE_EARLY = "a change of voters ends when the leader has published what it had, by the old voters alone"
    COMPARES_TOO_EARLY = "a follower compares its log with that of a candidate, which may yet have to fetch"
    FORGETS_ITS_DISK = "a member that has lost its directory counts at once"
    CUTS_TO_WATERMARK = "a follower cuts what it does not know to be published, as old versions of Kafka did"


class Member(NamedTuple):
    """See the module's text. `match`: (epoch, length) that its log is known to share with that of the epoch's leader.
    `sets`: the voters, as it knows them since it leads."""

    promised: int
    log: Log
    shown: int
    role: int
    match: tuple[int, int]
    sets: tuple[Voters, ...]


class Epoch(NamedTuple):
    """What happened in an epoch. `first`: where its first record is, 0 before there is one."""

    leader: int
    sent: Log
    first: int
    acked: tuple[int, ...]
    answers: tuple[tuple[int, int] | None, ...]
    published: int


class State(NamedTuple):
    """See the module's text. `since`: what the change of voters must wait for."""

    members: tuple[Member, ...]
    epochs: tuple[Epoch, ...]
    sets: tuple[Voters, ...]
    since: int
    history: Log
    transactions: int
    crashes: int
    changed: bool


class Bounds(NamedTuple):
    """How far the search goes. `change`: the voters before and after the one change, or None."""

    members: int = 3
    epochs: int = 3
    transactions: int = 2
    crashes: int = 1
    change: tuple[Voters, Voters] | None = None


def initial(bounds: Bounds) -> State:
    """Nothing has happened."""
    voters = tuple(range(bounds.members)) if bounds.change is None else bounds.change[0]
    member = Member(0, (), 0, FOLLOWER, (0, 0), ())
    return State((member,) * bounds.members, (), (voters,), 0, (), 0, 0, False)


def majority(voters: Voters) -> int:
    return len(voters) // 2 + 1


def steps(bounds: Bounds, fault: Fault | None = None) -> Callable[[State], Iterator[tuple[str, State | Broken]]]:
    """What may happen next in a state, within the bounds, with one rule broken or none."""

    def held(sets: tuple[Voters, ...], acked: tuple[int, ...]) -> int:
        less = 1 if fault is Fault.TOO_FEW_COPIES else 0
        return min(sorted((acked[v] for v in voters), reverse=True)[max(0, majority(voters) - 1 - less)]
                   for voters in sets)

    def enough(sets: tuple[Voters, ...], chosen: tuple[int, ...]) -> bool:
        less = 1 if fault is Fault.TOO_FEW_PROMISES else 0
        return all(len(set(voters) & set(chosen)) >= max(1, len(voters) - majority(voters) + 1 - less)
                   for voters in sets)

    def rank(member: Member) -> tuple[int, int]:
        last = member.log[-1][0] if member.log else 0
        return (member.promised if fault is Fault.ELECTS_BY_PROMISE else last), len(member.log)

    def show(state: State, who: int, upto: int) -> State | Broken:
        """A member shows more. What was shown anywhere must be one history."""
        member = state.members[who]
        seen, history = member.log[:upto], state.history
        common = min(len(seen), len(history))
        if seen[:common] != history[:common]:
            return Broken("everything that is shown is a prefix of one history")
        state = put(state, who, member._replace(shown=upto))
        return state if len(seen) <= len(history) else state._replace(history=seen)

    def put(state: State, who: int, member: Member) -> State:
        members = state.members
        return state._replace(members=(*members[:who], member, *members[who + 1:]))

    def put_epoch(state: State, number: int, epoch: Epoch) -> State:
        return state._replace(epochs=(*state.epochs[: number - 1], epoch, *state.epochs[number:]))

    nobody, none = (None,) * bounds.members, (0,) * bounds.members

    def tidy(state: State) -> State:
        """Forget what cannot matter any more, so that states which differ in nothing else are one."""
        epochs = []
        for number, epoch in enumerate(state.epochs, 1):
            leader = state.members[epoch.leader]
            leads = leader.role if leader.promised == number else FOLLOWER
            if leads != CANDIDATE:
                epoch = epoch._replace(answers=nobody)
            if leads != LEADER:
                epoch = epoch._replace(acked=none)
            if all(member.promised > number for member in state.members) and fault is not Fault.DOES_NOT_FENCE:
                epoch = Epoch(epoch.leader, (), epoch.first and 1, none, nobody, 0)
            epochs.append(epoch)
        return state._replace(epochs=tuple(epochs))

    def stand(state: State, who: int) -> Iterator[tuple[str, State | Broken]]:
        """A member makes itself the leader in the document."""
        member, number = state.members[who], len(state.epochs) + 1
        if member.role == LEADER or not any(who in voters for voters in state.sets):
            return
        if bounds.change is None and who > max((epoch.leader for epoch in state.epochs), default=-1) + 1:
            return  # it is like a member of a lower number
        if fault is Fault.REUSES_AN_EPOCH and state.epochs and state.epochs[-1].leader != who:
            number -= 1
            changed = member._replace(promised=number, role=CANDIDATE, match=(0, 0), sets=state.sets)
            if member.promised <= number:
                yield f"{who} takes itself for the leader of epoch {number}", put(state, who, changed)
        elif number <= bounds.epochs and member.promised < number:
            answers = tuple(rank(member) if n == who else None for n in range(bounds.members))
            changed = member._replace(promised=number, role=CANDIDATE, match=(0, 0), sets=state.sets)
            after = put(state, who, changed)
            yield f"{who} leads epoch {number} in the document", after._replace(
                epochs=(*state.epochs, Epoch(who, (), 0, none, answers, 0)))

    def promise(state: State, who: int) -> Iterator[tuple[str, State | Broken]]:
        member = state.members[who]
        for number, epoch in enumerate(state.epochs, 1):
            if number > member.promised and not epoch.first and epoch.leader != who:
                answers = (*epoch.answers[:who], rank(member), *epoch.answers[who + 1:])
                after = put_epoch(state, number, epoch._replace(answers=answers))
                if fault is not Fault.ELECTS_WITHOUT_PROMISES:
                    after = put(after, who, member._replace(promised=number, role=FOLLOWER, match=(0, 0), sets=()))
                yield f"{who} promises epoch {number}, and its log ends at {rank(member)}", after

    def win(state: State, who: int) -> Iterator[tuple[str, State | Broken]]:
        """A candidate with enough promises takes the best log, and begins its epoch."""
        member = state.members[who]
        if member.role != CANDIDATE:
            return
        number = member.promised
        epoch = state.epochs[number - 1]
        answered = [n for n in range(bounds.members) if epoch.answers[n] is not None or n == who]
        for size in range(1, len(answered) + 1):
            for chosen in combinations(answered, size):
                if who not in chosen or not enough(member.sets, chosen):
                    continue
                best = max(chosen, key=lambda n: (rank(member) if n == who else epoch.answers[n] or (0, 0), n == who))
                log = member.log
                if best != who and (epoch.answers[best] or (0, 0)) > rank(member) and (
                        fault is not Fault.DOES_NOT_FETCH):
                    length = (epoch.answers[best] or (0, 0))[1]
                    log = state.members[best].log[:length]
                    if len(log) < length or (log and fault is not Fault.ELECTS_BY_PROMISE
                                             and log[-1][0] != (epoch.answers[best] or (0, 0))[0]):
                        continue  # it has another log by now: the fetch fails
                    if member.log[:member.shown] != log[:member.shown]:
                        yield f"{who} fetches the log of {best}", Broken("what was shown is not cut")
                        continue
                later = any(other.first for other in state.epochs[number:])  # then nothing that it does is shown
                if not later and log[:len(state.history)] != state.history:
                    yield f"{who} begins epoch {number}, promised by {chosen}", Broken(
                        "a leader has everything that was published")
                    continue
                log = (*log, (number, 0))
                acked = tuple(len(log) if n == who else a for n, a in enumerate(epoch.acked))
                after = put(state, who, member._replace(log=log, role=LEADER, match=(number, len(log))))
                yield f"{who} begins epoch {number}, promised by {chosen}", put_epoch(
                    after, number, epoch._replace(sent=log, first=len(log), acked=acked))

    def write(state: State, who: int) -> Iterator[tuple[str, State | Broken]]:
        member = state.members[who]
        epoch = state.epochs[member.promised - 1]
        if epoch.published < epoch.first or state.transactions >= bounds.transactions:
            return
        log = (*member.log, (member.promised, state.transactions + 1))
        acked = tuple(len(log) if n == who else a for n, a in enumerate(epoch.acked))
        after = put(state, who, member._replace(log=log, match=(member.promised, len(log))))
        yield f"{who} commits transaction {state.transactions + 1}", put_epoch(
            after, member.promised, epoch._replace(sent=log, acked=acked))._replace(
                transactions=state.transactions + 1)

    def publish(state: State, who: int) -> Iterator[tuple[str, State | Broken]]:
        member = state.members[who]
        number, epoch = member.promised, state.epochs[member.promised - 1]
        upto = min(held(member.sets, epoch.acked), len(member.log))
        if upto <= epoch.published or (upto < epoch.first and fault is not Fault.COUNTS_OLDER_RECORDS):
            return
        after = show(state, who, max(upto, member.shown))
        if not isinstance(after, Broken):
            after = put_epoch(after, number, epoch._replace(published=upto))
        yield f"{who} publishes {upto} records in epoch {number}", after

    def follow(state: State, who: int) -> Iterator[tuple[str, State | Broken]]:
        member = state.members[who]
        for number, epoch in enumerate(state.epochs, 1):
            if epoch.leader == who or (number < member.promised and fault is not Fault.DOES_NOT_FENCE):
                continue
            leader_log = epoch.sent
            if not leader_log and fault is Fault.COMPARES_TOO_EARLY:
                leader_log = state.members[epoch.leader].log
            if member.match[0] != number:
                if not epoch.sent and fault is not Fault.COMPARES_TOO_EARLY:
                    continue
                common = 0
                while common < min(len(leader_log), len(member.log)) and leader_log[common] == member.log[common]:
                    common += 1
                if fault is Fault.CUTS_TO_WATERMARK:
                    common = min(common, member.shown)
                name = f"{who} follows epoch {number}: its log has {common} of {len(member.log)} records in common"
                if common < member.shown:
                    yield name, Broken("what was shown is not cut")
                    continue
                follower = member._replace(log=member.log[:common], match=(number, common))
                if number > member.promised:  # the document told it
                    follower = follower._replace(promised=number, role=FOLLOWER, sets=())
                after = put(state, who, follower)
                acked = tuple(max(a, common) if n == who and epoch.sent else a for n, a in enumerate(epoch.acked))
                yield name, put_epoch(after, number, epoch._replace(acked=acked))
                continue
            length = len(member.log)
            if member.match[1] == length < len(epoch.sent) and epoch.sent[:length] == member.log:
                log = epoch.sent[: length + 1]
                after = put(state, who, member._replace(log=log, match=(number, length + 1)))
                acked = tuple(length + 1 if n == who else a for n, a in enumerate(epoch.acked))
                yield f"{who} appends and acknowledges record {length + 1} of epoch {number}", put_epoch(
                    after, number, epoch._replace(acked=acked))

    def hear(state: State, who: int) -> Iterator[tuple[str, State | Broken]]:
        """A follower shows what the leader of its epoch has published."""
        member = state.members[who]
        if not member.promised or member.role == LEADER:
            return
        epoch = state.epochs[member.promised - 1]
        matched = member.match[1] if member.match[0] == member.promised else 0
        if fault is Fault.SHOWS_WITHOUT_MATCH:
            matched = len(member.log)
        upto = min(epoch.published, matched)
        if upto > member.shown:
            yield f"{who} shows {upto} records", show(state, who, upto)

    def crash(state: State, who: int) -> Iterator[tuple[str, State | Broken]]:
        member = state.members[who]
        if state.crashes >= bounds.crashes:
            return
        promised, log = member.promised, member.log
        if fault is Fault.FORGETS_PROMISES:
            promised = log[-1][0] if log else 0
        if fault is Fault.FORGETS_ITS_DISK:
            promised, log = 0, ()
        for shown in {0, min(member.shown, len(log))}:
            opened = Member(promised, log, shown, FOLLOWER, (0, 0), ())
            after: State | Broken = put(state, who, opened)._replace(crashes=state.crashes + 1)
            if fault is Fault.SHOWS_ALL_WHEN_OPENED and isinstance(after, State):
                after = show(after, who, len(log))
            yield f"{who} crashes, and is opened again with {shown} records shown", after

    def change(state: State, who: int) -> Iterator[tuple[str, State | Broken]]:
        """The leader changes the voters, in a swap that compares the document."""
        member = state.members[who]
        number, epoch = member.promised, state.epochs[member.promised - 1]
        if bounds.change is None or number != len(state.epochs) or epoch.published < epoch.first:
            return
        new = bounds.change[1]
        if not state.changed:
            sets = (new,) if fault is Fault.CHANGES_IN_ONE_STEP else (state.sets[0], new)
            yield f"{who} begins to change the voters to {new}", put(state, who, member._replace(sets=sets))._replace(
                sets=sets, since=len(member.log), changed=True)
        elif len(state.sets) == 2:
            # A leader that finds a change of an earlier one waits for all that it has by now.
            since = state.since if member.sets == state.sets else len(member.log)
            done = epoch.published if fault is Fault.ENDS_A_CHANGE_EARLY else held(state.sets, epoch.acked)
            if done >= since:
                yield f"{who} ends the change of the voters", put(state, who, member._replace(sets=(new,)))._replace(
                    sets=(new,))

    def successors(state: State) -> Iterator[tuple[str, State | Broken]]:
        for name, after in everything(state):
            yield name, after if isinstance(after, Broken) else tidy(after)

    def everything(state: State) -> Iterator[tuple[str, State | Broken]]:
        for who, member in enumerate(state.members):
            yield from stand(state, who)
            yield from promise(state, who)
            yield from win(state, who)
            if member.role == LEADER:
                yield from write(state, who)
                yield from publish(state, who)
                yield from change(state, who)
            yield from follow(state, who)
            yield from hear(state, who)
            yield from crash(state, who)

    return successors
