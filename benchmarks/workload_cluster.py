"""Clusters of three members, each a process on loopback: commits, lag, fail-over, switch-over, seeding.

Clients are threads in the primary's process, as the users of a member are. Beside each rate stands that of a store
alone in a process of its own; that of etcd's puts on three nodes if etcd is here, which then is the coordinator too;
and that of PostgreSQL with two standbys if PostgreSQL is here. All share the cores with this process, so only ratios
mean something.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Self

from .. import backup
from ..replay.ha.coordinators.url import open_coordinator
from ..replay.ha.document import ClusterDocument
from .child import Child
from .etcd_peer import Etcd, etcd_program
from .harness import Bench, Contestant, Line, Samples, percentile
from .large_store import large_store, size_of
from .postgres_peer import Postgres, postgres_programs

NAMES = ("a", "b", "c")
ACKS = ("quorum", "all", "local")
SHARES = {"p50": 0.5, "p99": 0.99}
POSTGRES = "PostgreSQL, ANY 1 of 2 standbys"
PATIENCE_S = 60.0
FAILOVER_TTL = 2.0


def ask(member: Child, word: str, **order: Any) -> dict[str, Any]:
    member.tell(json.dumps({"do": word, **order}))
    return member.hear(word)


def until(reached: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not reached():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {PATIENCE_S:.0f} s")
        time.sleep(0.01)


class Processes:
    """A cluster of three members. A context manager: they are ended."""

    def __init__(self, place: Path, engine: str, coordinator: str, ttl: float) -> None:
        """`place`: an empty directory; its name becomes the cluster's."""
        self._place, self._engine, self.coordinator, self._ttl = place, engine, coordinator, ttl
        self.members: dict[str, Child] = {}
        self.opened = 0.0  # how many seconds the last one took

    def __enter__(self) -> Self:
        try:
            for name in NAMES:
                ask(self.start(name), "ready")
            until(lambda: len(self.document().voters) == len(NAMES), "three voters")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members.values():
            with member:
                pass

    def start(self, name: str) -> Child:
        """Start a member, the first one with a new cluster. Its store is open when this returns."""
        options = ["--engine", self._engine, "--coordinator", self.coordinator, "--cluster", self._place.name,
                   "--name", name, "--ttl", str(self._ttl)]
        member = Child(f"{__package__}.member_child", str(self._place / name), *options,
                       *(["--create"] if name == NAMES[0] else []))
        self.members[name] = member
        self.opened = float(member.hear("open")["seconds"])
        return member

    def kill(self, name: str) -> None:
        with self.members.pop(name) as member:
            member.kill()

    def document(self) -> ClusterDocument:
        with contextlib.closing(open_coordinator(self.coordinator, self._place.name)) as coordinator:
            data, _ = coordinator.read(5.0)
        if data is None:
            raise RuntimeError("the coordinator has no document of this cluster")
        document = ClusterDocument.decode(data)
        return document if document.joint is None else self.document()

    def primary(self) -> str:
        found: list[str] = []

        def look() -> bool:
            found[:] = [name for name, m in self.members.items() if ask(m, "state")["role"] == "primary"]
            return len(found) == 1

        until(look, "one primary")
        return found[0]

    def settle(self) -> None:
        """Wait until all members show the same."""
        until(lambda: len({ask(m, "state")["published"] for m in self.members.values()}) == 1, "equal members")

    def first_commit(self, names: Sequence[str]) -> float:
        """When a commit first succeeds on one of these members."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for name in names:
                tried = ask(self.members[name], "try")
                if tried["ok"]:
                    at: float = tried["at"]
                    return at
            time.sleep(0.002)
        raise RuntimeError(f"no member of {', '.join(names)} takes transactions after {PATIENCE_S:.0f} s")


# --- commits ------------------------------------------------------------------------------------------------------


class Rates:
    """Contestants that commit: their rates come from `interleave`, their latencies and costs are kept here. The first
    run of each is the warm-up."""

    def __init__(self) -> None:
        self._latencies: dict[str, list[dict[str, float]]] = {}
        self._costs: dict[str, list[dict[str, float]]] = {}

    def kept(self, key: str, latencies: dict[str, float], cost: dict[str, float] | None = None) -> None:
        self._latencies.setdefault(key, []).append(latencies)
        if cost is not None:
            self._costs.setdefault(key, []).append(cost)

    def latency(self, key: str, share: str) -> Samples:
        return Samples(tuple(run[share] for run in self._latencies[key][1:]))

    def cost(self, key: str, of: str) -> Samples:
        return Samples(tuple(cost[of] for cost in self._costs[key][1:]))


def member_commits(rates: Rates, key: str, cluster: Processes, primary: str, threads: int, seconds: float,
                   ack: str) -> Contestant:
    def run() -> float:
        before = {name: ask(m, "cost") for name, m in cluster.members.items()}
        done = ask(cluster.members[primary], "commit", threads=threads, seconds=seconds, ack=ack)
        cluster.settle()
        after = {name: ask(m, "cost") for name, m in cluster.members.items()}
        cost = {f"{kind} {of}": sum(after[n][of] - before[n][of] for n in names) / len(names) / done["count"]
                for of in ("cpu", "switches")
                for kind, names in (("primary", [primary]), ("follower", [n for n in before if n != primary]))}
        rates.kept(key, done, cost)
        rate: float = done["rate"]
        return rate

    return run


def store_commits(rates: Rates, key: str, store: Child, threads: int, seconds: float) -> Contestant:
    def run() -> float:
        done = ask(store, "commit", threads=threads, seconds=seconds)
        rates.kept(key, done)
        rate: float = done["rate"]
        return rate

    return run


def peer_commits(rates: Rates, key: str, commits: Callable[[int, float], tuple[float, list[float]]], clients: int,
                 seconds: float) -> Contestant:
    def run() -> float:
        rate, latencies = commits(clients, seconds)
        rates.kept(key, {share: percentile(latencies, part) for share, part in SHARES.items()})
        return rate

    return run


def _commits(bench: Bench, engine: str, cluster: Processes, store: Child, etcd: Etcd | None,
             postgres: Postgres | None) -> Iterator[Line]:
    seconds, primary = bench.scale.seconds, cluster.primary()
    acks = ACKS if engine == "memory" else ACKS[:1]
    for clients in (1, bench.scale.threads):
        rates = Rates()
        contestants = {ack: member_commits(rates, ack, cluster, primary, clients, seconds, ack) for ack in acks}
        contestants["alone"] = store_commits(rates, "alone", store, clients, seconds)
        if etcd is not None:
            contestants["etcd"] = peer_commits(rates, "etcd", etcd.puts, clients, seconds)
        if postgres is not None:
            contestants["postgres"] = peer_commits(rates, "postgres", postgres.commits, clients, seconds)
        found = bench.interleave(f"cluster, {engine}, {clients} clients", contestants)
        what = f"{engine}, {clients} client{'s' if clients > 1 else ''}"
        for ack in acks:
            name = f"cluster commits, {what}, ack={ack}"
            yield Line(workload=name, figure=found[ack], unit="commits/s", peer="the same store alone",
                       peer_figure=found["alone"], target=0.5 if ack == "quorum" and clients > 1 else None)
            if etcd is not None:
                yield Line(workload=name, figure=found[ack], unit="commits/s", peer="etcd puts, 3 nodes",
                           peer_figure=found["etcd"], target=2.0 if ack == "quorum" else None,
                           note="puts through etcd's JSON gateway, at its leader")
            if postgres is not None:
                yield Line(workload=name, figure=found[ack], unit="commits/s", peer=POSTGRES,
                           peer_figure=found["postgres"], target=1.0 if ack == "quorum" and clients == 1 else None,
                           note="upserts of one row, prepared, by pgbench")
        for ack in acks:
            for share in SHARES:
                name = f"cluster commit latency {share}, {what}, ack={ack}"
                for key, peer in (("alone", "the same store alone"), ("etcd", "etcd puts, 3 nodes"),
                                  ("postgres", POSTGRES)):
                    if key in contestants:
                        yield Line(workload=name, figure=rates.latency(ack, share), unit="ms", better="less",
                                   peer=peer, peer_figure=rates.latency(key, share))
        for kind in ("primary", "follower"):
            cpu = Samples(tuple(s * 1e6 for s in rates.cost("quorum", f"{kind} cpu").values))
            yield Line(workload=f"CPU time of a quorum commit, {what}, {kind}", unit="us", better="less", figure=cpu)
            yield Line(workload=f"thread switches of a quorum commit, {what}, {kind}", unit="switches", better="less",
                       figure=rates.cost("quorum", f"{kind} switches"))


# --- lag ----------------------------------------------------------------------------------------------------------


def lags(durable: Sequence[Sequence[float]], published: Sequence[Sequence[float]]) -> list[float]:
    """Milliseconds from when each transaction was durable on the primary until it was published on a follower."""
    ends = [int(txid) for txid, _ in published]
    found, last = [], None
    for txid, at in durable:
        for number in range(int(txid) if last is None else last + 1, int(txid) + 1):
            place = bisect.bisect_left(ends, number)
            if place < len(ends):
                found.append((published[place][1] - at) * 1000)
        last = int(txid)
    return found


def _lag(bench: Bench, engine: str, cluster: Processes) -> Iterator[Line]:
    primary = cluster.primary()
    rounds: list[list[float]] = []
    for number in range(bench.scale.rounds):
        bench.say(f"replication lag, {engine}: round {number + 1} of {bench.scale.rounds}")
        for member in cluster.members.values():
            ask(member, "watch")
        ask(cluster.members[primary], "commit", threads=bench.scale.threads, seconds=bench.scale.seconds)
        cluster.settle()
        seen = {name: ask(m, "watched") for name, m in cluster.members.items()}
        rounds.append([ms for name, notes in seen.items() if name != primary
                       for ms in lags(seen[primary]["durable"], notes["published"])])
    for shown, share in SHARES.items():
        target = 5.0 if shown == "p99" else None
        yield Line(workload=f"replication lag {shown}, {engine}, {bench.scale.threads} clients", unit="ms",
                   better="less", figure=Samples(tuple(percentile(run, share) for run in rounds)), target=target,
                   note="durable on the primary until published on a follower, both followers")


# --- fail-over and switch-over ------------------------------------------------------------------------------------


def _fail_over(bench: Bench, cluster: Processes) -> Iterator[Line]:
    times = []
    for number in range(bench.scale.kills):
        bench.say(f"fail-over: kill {number + 1} of {bench.scale.kills}")
        primary = cluster.primary()
        killed = time.monotonic()
        cluster.kill(primary)
        times.append(cluster.first_commit(list(cluster.members)) - killed)
        ask(cluster.start(primary), "ready")
        until(lambda: len(cluster.document().voters) == len(NAMES), "three voters")
        cluster.settle()
    yield Line(workload="fail-over after SIGKILL, to the first commit", figure=Samples(tuple(times)), unit="s",
               better="less", target=1.0, note=f"{len(times)} kills, a ttl of {FAILOVER_TTL:g} s; the highest figure "
                                               f"should be at most {FAILOVER_TTL + 2:g} s")


def _switch_over(bench: Bench, cluster: Processes) -> Iterator[Line]:
    pauses = []
    for number in range(bench.scale.switches):
        bench.say(f"switch-over: {number + 1} of {bench.scale.switches}")
        primary = cluster.primary()
        to = next(name for name in NAMES if name != primary)
        old = cluster.members[primary]
        ask(old, "pour")
        time.sleep(0.2)
        ask(old, "switch", to=to)
        first = cluster.first_commit([to])
        pauses.append(first - ask(old, "poured")["at"])
        cluster.settle()
    yield Line(workload="switch-over, between two commits", figure=Samples(tuple(pauses)), unit="s", better="less",
               target=1.0)


# --- seeding ------------------------------------------------------------------------------------------------------


def _seeding(bench: Bench, coordinator: str) -> Iterator[Line]:
    original = large_store(bench)
    with bench.scratch("seeding") as place:
        shutil.copytree(original, place / "a")
        cluster = Processes(place, "graph", coordinator, 10.0)
        try:
            address = ask(cluster.start("a"), "ready")["address"]
            sizes: dict[str, int] = {}

            def seed() -> float:
                cluster.start("b")
                taken = cluster.opened
                sizes["b"] = size_of(place / "b")
                cluster.kill("b")
                shutil.rmtree(place / "b")
                return sizes["a"] / taken / 1e6

            def full() -> float:
                began = perf_counter()
                backup.run(f"single://{address}", place / "backup", policy=backup.Policy(verify=False))
                taken = perf_counter() - began
                sizes["a"] = size_of(place / "backup")
                shutil.rmtree(place / "backup")
                return sizes["a"] / taken / 1e6

            found = bench.interleave("seeding", {"backup": full, "seed": seed}, rounds=bench.scale.load_rounds)
        finally:
            cluster.__exit__()
    yield Line(workload="seeding a member", figure=found["seed"], unit="MB/s", peer="a full backup of the same store",
               peer_figure=found["backup"], target=0.8, note="both by the bytes of the backup; until the member's "
                                                             "store is open")


def run(bench: Bench) -> Iterator[Line]:
    program, programs = etcd_program(), postgres_programs()
    with bench.scratch("coordinator") as place, contextlib.ExitStack() as stack:
        etcd = None if program is None else stack.enter_context(Etcd(place, program))
        if etcd is None:
            bench.say("no etcd was found here: the coordinator is a directory, and etcd's puts are not measured")
        postgres = None if programs is None else stack.enter_context(Postgres(place, programs))
        if postgres is None:
            bench.say("no PostgreSQL was found here that may be run, and its commits are not measured")
        yield from _measure(bench, f"file:{place}" if etcd is None else etcd.coordinator, etcd, postgres)


def _measure(bench: Bench, coordinator: str, etcd: Etcd | None, postgres: Postgres | None) -> Iterator[Line]:
    for engine in ("memory", "graph"):
        with (bench.scratch(f"cluster-{engine}") as place, Processes(place, engine, coordinator, 10.0) as cluster,
              Child(f"{__package__}.member_child", str(place / "alone"), "--engine", engine) as store):
            store.hear("open")
            yield from _commits(bench, engine, cluster, store, etcd, postgres)
            yield from _lag(bench, engine, cluster)
    with bench.scratch("cluster-faults") as place, Processes(place, "memory", coordinator, FAILOVER_TTL) as cluster:
        yield from _fail_over(bench, cluster)
        yield from _switch_over(bench, cluster)
    yield from _seeding(bench, coordinator)
