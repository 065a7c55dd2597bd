"""The transactions and checkers of the LDBC ACID suite, on the graph store.

A transaction is a list of steps, each a call with the transaction or view. `Access` takes them together, as the store
means
them: all writes in one transaction, all reads from one snapshot. `Apart` is a deliberately weaker store over the same
one: each step is a transaction, or a snapshot, by itself. Between two steps both call `between`, with which a test puts
other transactions there; that is how each checker is seen to find its anomaly.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.engine.builtin.graph import GraphTransaction, GraphView
from holdfast.engine.contract.transaction import Durability
from holdfast.engine.store.store import Store

Graph = Store[GraphTransaction, GraphView]
Step = Callable[[Any], Any]


AT_LEAST = 5


class Abort(Exception):
    """Rolls a transaction back."""


def _pause() -> None:
    time.sleep(0.0003)


@dataclass
class Access:
    """How transactions reach the store; see the module's text.

    Attributes:
        store: the graph.
        durability: of its commits.
        unsynced: read also what is appended only.
        between: called between two steps.
    """

    store: Graph
    durability: Durability = "synced"
    unsynced: bool = False
    between: Callable[[], None] = _pause

    def write(self, *steps: Step) -> list[Any]:
        """Take the steps in one transaction; what each returned. Rolled back where one raises `Abort`: an empty list.
        """
        try:
            with self.store.transaction(self.durability) as tx:
                return list(self._each(steps, tx))
        except Abort:
            return []

    def read(self, *steps: Step) -> list[Any]:
        """Take the steps on one snapshot."""
        with self.store.snapshot(unsynced=self.unsynced) as view:
            return list(self._each(steps, view))

    def _each(self, steps: Sequence[Step], on: Any) -> Iterator[Any]:
        for number, step in enumerate(steps):
            if number:
                self.between()
            yield step(on)


class Apart(Access):
    """The weaker store."""

    def interpose(self, action: Callable[[], None]) -> None:
        """Do `action` once, between the next two steps."""

        def between() -> None:
            self.between = lambda: None
            action()

        self.between = between

    def write(self, *steps: Step) -> list[Any]:
        done = []
        for number, step in enumerate(steps):
            if number:
                self.between()
            try:
                with self.store.transaction(self.durability) as tx:
                    done.append(step(tx))
            except Abort:
                return []
        return done

    def read(self, *steps: Step) -> list[Any]:
        done = []
        for number, step in enumerate(steps):
            if number:
                self.between()
            with self.store.snapshot(unsynced=self.unsynced) as view:
                done.append(step(view))
        return done


def run_threads(seconds: float, *work: Callable[[int, random.Random], None]) -> list[int]:
    """Call each of `work` again and again, at least `AT_LEAST` times, in a thread of its own, with a number that no
    other call gets and a source of chance. How often each was called."""
    deadline = time.monotonic() + seconds
    raised: list[BaseException] = []
    calls = [0] * len(work)

    def run(thread: int) -> None:
        chance = random.Random(thread)
        try:
            while (time.monotonic() < deadline or calls[thread] < AT_LEAST) and not raised:
                calls[thread] += 1
                work[thread](calls[thread] * len(work) + thread, chance)
                _pause()  # so that no thread keeps the interpreter from the others
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    return calls


def get(key: str, node: int) -> Step:
    return lambda on: on.node(node).properties[key]


def put(key: str, node: int, value: Any) -> Step:
    return lambda tx: tx.set_properties(node, {key: value})


def increment(key: str, node: int) -> Step:
    return lambda tx: tx.set_properties(node, {key: tx.node(node).properties[key] + 1})


def abort(tx: GraphTransaction) -> None:
    raise Abort


# --- atomicity -------------------------------------------------------------------------------------------------------


class Atomicity:
    """Persons with e-mail addresses, and their friends. A transaction adds a person, a friendship, and an address to
    the first one; or it finds the person there already and rolls back."""

    def __init__(self, store: Graph) -> None:
        with store.transaction() as tx:
            self.first = tx.add_node("Person", number=0, emails=["0"])
        self.committed = 0
        self._lock = threading.Lock()

    def befriend(self, access: Access, number: int, *, fails: bool) -> None:
        def add_email(tx: GraphTransaction) -> None:
            emails = tx.node(self.first).properties["emails"]
            tx.set_properties(self.first, emails=[*emails, str(number)])

        def add_friend(tx: GraphTransaction) -> None:
            if fails:
                raise Abort  # as the suite has it: a person of this number is there already
            tx.add_edge(self.first, "KNOWS", tx.add_node("Person", number=number, emails=[]))

        if access.write(add_email, add_friend):
            with self._lock:
                self.committed += 1

    def anomalies(self, access: Access, *, exact: bool) -> list[str]:
        """What a snapshot shows that is not whole transactions; with `exact`, not all of them."""
        [(persons, emails, friends)] = access.read(
            lambda view: (len(list(view.nodes("Person"))), len(view.node(self.first).properties["emails"]),
                          view.degree(self.first, "KNOWS")))
        if not persons == emails == friends + 1:
            return [f"{persons} persons, {emails} addresses, {friends} friends"]
        if exact and friends != self.committed:
            return [f"{friends} friends after {self.committed} commits"]
        return []


# --- dirty writes ----------------------------------------------------------------------------------------------------


class DirtyWrite:
    """Two persons and the edge between them keep the list of those who wrote them last."""

    KEPT = 100

    def __init__(self, store: Graph) -> None:
        with store.transaction() as tx:
            self.one, self.other = tx.add_node("Person", written=[]), tx.add_node("Person", written=[])
            self.edge = tx.add_edge(self.one, "KNOWS", self.other, written=[])

    def write(self, access: Access, number: int) -> None:
        def append(node: int) -> Step:
            return lambda tx: tx.set_properties(node,
                                                written=[*tx.node(node).properties["written"], number][-self.KEPT :])

        def append_edge(tx: GraphTransaction) -> None:
            written = tx.edge(self.edge).properties["written"]
            tx.set_edge_properties(self.edge, written=[*written, number][-self.KEPT :])

        access.write(append(self.one), append_edge, append(self.other))

    def anomalies(self, access: Access) -> list[str]:
        [(one, edge, other)] = access.read(lambda view: (
            view.node(self.one).properties["written"], view.edge(self.edge).properties["written"],
            view.node(self.other).properties["written"]))
        return [] if one == edge == other else [f"{one}, {edge} and {other} were written in different orders"]


# --- versions --------------------------------------------------------------------------------------------------------


class Versions:
    """A ring of persons, each with a version; what most of the suite's anomalies are about."""

    def __init__(self, store: Graph, persons: int, version: int = 1) -> None:
        with store.transaction() as tx:
            self.persons = [tx.add_node("Person", version=version) for _ in range(persons)]
            for source, target in zip(self.persons, [*self.persons[1:], self.persons[0]], strict=True):
                tx.add_edge(source, "KNOWS", target)

    def around(self, on: Any) -> list[int]:
        """The versions, along the ring."""
        found, person = [], self.persons[0]
        for _ in self.persons:
            found.append(on.node(person).properties["version"])
            [person] = on.neighbors(person, "KNOWS")
        return found

    def increment_all(self, access: Access) -> None:
        access.write(*(increment("version", person) for person in self.persons))


class CircularFlow:
    """Each transaction writes its number to one of two persons and reads the other: whom it read from came before it.
    Two that each read from the other would each come before the other."""

    def __init__(self, store: Graph) -> None:
        with store.transaction() as tx:
            self.persons = [tx.add_node("Person", version=0) for _ in range(2)]
        self.read_from: dict[int, int] = {}

    def write(self, access: Access, number: int, *, swapped: bool) -> None:
        one, other = reversed(self.persons) if swapped else self.persons
        done = access.write(put("version", one, number), get("version", other))
        self.read_from[number] = done[1]

    def anomalies(self) -> list[str]:
        return [f"transactions {number} and {other} each read what the other wrote"
                for number, other in self.read_from.items() if self.read_from.get(other) == number]


class Likes:
    """A post, and persons who like it."""

    def __init__(self, store: Graph) -> None:
        with store.transaction() as tx:
            self.post = tx.add_node("Post")

    def like(self, access: Access) -> None:
        access.write(lambda tx: tx.add_edge(tx.add_node("Person"), "LIKES", self.post))

    def count(self, view: GraphView) -> int:
        return sum(view.has_node(person) for person in view.neighbors(self.post, "LIKES", "in"))


# --- lost updates and write skew -------------------------------------------------------------------------------------


class Friends:
    """A person who counts the friends that are added."""

    def __init__(self, store: Graph) -> None:
        with store.transaction() as tx:
            self.person = tx.add_node("Person", friends=0)

    def add(self, access: Access) -> None:
        seen: list[int] = []

        def look(tx: GraphTransaction) -> None:
            seen.append(tx.node(self.person).properties["friends"])

        def add(tx: GraphTransaction) -> None:
            tx.add_edge(self.person, "KNOWS", tx.add_node("Person"))
            tx.set_properties(self.person, friends=seen[0] + 1)

        access.write(look, add)

    def anomalies(self, access: Access) -> list[str]:
        [(counted, there)] = access.read(lambda view: (view.node(self.person).properties["friends"],
                                                       view.degree(self.person, "KNOWS")))
        return [] if counted == there else [f"{counted} friends are counted, and {there} are there"]


class Accounts:
    """Pairs of persons whose values must not come to less than 1 together. A transaction takes 100 from one of a pair
    where that leaves enough."""

    def __init__(self, store: Graph, pairs: int) -> None:
        with store.transaction() as tx:
            self.pairs = [(tx.add_node("Person", value=70), tx.add_node("Person", value=80)) for _ in range(pairs)]

    def take(self, access: Access, pair: int, which: int) -> None:
        together: list[int] = []

        def look(tx: GraphTransaction) -> None:
            together.append(sum(tx.node(person).properties["value"] for person in self.pairs[pair]))

        def take(tx: GraphTransaction) -> None:
            if together[0] > 100:
                person = self.pairs[pair][which]
                tx.set_properties(person, value=tx.node(person).properties["value"] - 100)

        access.write(look, take)

    def refill(self, access: Access, pair: int) -> None:
        access.write(lambda tx: [tx.set_properties(person, value=value)
                                 for person, value in zip(self.pairs[pair], (70, 80), strict=True)])

    def anomalies(self, access: Access) -> list[str]:
        [sums] = access.read(lambda view: [sum(view.node(person).properties["value"] for person in pair)
                                           for pair in self.pairs])
        return [f"pair {number} comes to {value}" for number, value in enumerate(sums) if value <= 0]
