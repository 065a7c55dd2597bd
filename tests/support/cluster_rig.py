"""A cluster of real processes under real faults: members, a coordinator, a network (`wires.py`), clients, a nemesis.

What clients saw is kept as a history (`histories.py`). A client believes what its member says, and tries another if
that is not the primary. A reply that a client waits for comes, or the member dies: a call that hangs fails the test.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from histories import Final, History, Read, Write, check
from member_worker import LIST
from porcupine_check import Porcupine
from wires import Faults, Links, Spaces

TTL = 1.0
PATIENCE_S = 60.0
HEALED_S = 20.0
"""How long after a fault commits may stay away: leases, a restart of etcd that begins them anew, a slow machine."""
PAUSE_S = 0.02
"""Of a client between two calls, on average."""
CALM_S = 0.3
"""Between faults: all clients may have waited for a member that was paused."""
REFUSED = frozenset({"NotPrimary", "RolledBack", "NoCluster"})
UNKNOWN = frozenset({"OutcomeUnknown", "ConditionNotMet"})
NO_READ = frozenset({"NotPrimary", "NoCluster", "ConditionNotMet", "PeerUnavailable", "SourceUnavailable",
                     "StoreClosed"})  # the last one: the primary was deposed while the view was read
_WORKER = Path(__file__).with_name("member_worker.py")


class NotThere(Exception):
    """The member does not run, or died before it answered. `sent`: it may have got the order."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__()
        self.sent = sent


class MemberProcess:
    """One life of a member."""

    def __init__(self, life: str, command: list[str], log: Path) -> None:
        self.life = life
        self.ready = threading.Event()
        self.killed = False
        self._waiting: dict[int, list[dict[str, Any]]] = {}
        self._answered = threading.Condition()
        self._dead = False
        self._ids = itertools.count()
        with log.open("ab") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # the last line of a process that was killed may be cut
            for line in self.process.stdout:
                answer = json.loads(line)
                if "started" in answer:
                    self.ready.set()
                    continue
                with self._answered:
                    self._waiting[answer["id"]].append(answer)
                    self._answered.notify_all()
        with self._answered:
            self._dead = True
            self._answered.notify_all()

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """The answer. Raises `NotThere`."""
        if not self.ready.is_set() or self._dead:
            raise NotThere(sent=False)
        number, answers = next(self._ids), list[dict[str, Any]]()
        with self._answered:
            self._waiting[number] = answers
        line = json.dumps({"id": number, "do": do, **order}).encode() + b"\n"
        assert self.process.stdin is not None
        try:
            with self._answered:
                self.process.stdin.write(line)
                self.process.stdin.flush()
        except (OSError, ValueError):
            raise NotThere(sent=True) from None
        with self._answered:
            came = self._answered.wait_for(lambda: answers or self._dead, PATIENCE_S)
            del self._waiting[number]
        assert came, f"{self.life} did not answer {line!r} within {PATIENCE_S:g} s"
        if not answers:
            raise NotThere(sent=True)
        return answers[0]

    def kill(self) -> None:
        self.killed = True
        self.process.kill()
        self.process.wait()
        self._end()

    def close(self) -> None:
        """Let it end by itself, and see that it can."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.life} did not close within {PATIENCE_S:g} s") from None
        self._end()
        assert code == 0, f"{self.life} ended with {code}"

    def _end(self) -> None:
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class Cluster:
    """Three members. `kind`: "memory" or "graph". `archive`: URL of a repository that they archive into."""

    def __init__(self, root: Path, kind: str, wires: Links | Spaces, archive: str | None = None) -> None:
        self.root = root
        self.wires = wires
        self.members: dict[str, MemberProcess] = {}
        self.history = History()
        self.errors: list[str] = []
        self.primary = "a"
        self.acknowledged_at = 0.0  # when the last write that was acknowledged had begun
        self._kind = kind
        self._archive = [] if archive is None else [archive]
        self._lives: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._stopping = threading.Event()
        self._clients: list[threading.Thread] = []

    def __enter__(self) -> Cluster:
        try:
            self.start("a", create=True)
            for name in "bc":
                self.start(name)
            for member in self.members.values():
                assert member.ready.wait(PATIENCE_S), f"{member.life} was not open after {PATIENCE_S:g} s"
            self.until(lambda: all(self._status(name).get("votes") for name in self.members), "three voters")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for client in self._clients:
            client.join()
        for member in self.members.values():
            if member.process.returncode is None:
                member.kill()

    # --- processes ------------------------------------------------------------------------------------------------

    def start(self, name: str, *, create: bool = False) -> None:
        self._lives[name] += 1
        wires = self.wires
        self.members[name] = MemberProcess(f"{name}{self._lives[name]}", wires.inside(name, [
            sys.executable, str(_WORKER), str(self.root / name), name, wires.listens(name), wires.address(name),
            wires.coordinator(name), "create" if create else "join", str(TTL), self._kind,
            *self._archive]), self.root / f"{name}.log")

    def send(self, name: str, number: signal.Signals) -> None:
        self.members[name].process.send_signal(number)

    def _status(self, name: str) -> dict[str, Any]:
        try:
            status = self.members[name].ask("status")
        except NotThere:
            member = self.members[name]
            assert member.killed or member.process.poll() is None, f"{member.life} ended by itself: see its log"
            return {}
        assert "error" not in status, f"{self.members[name].life}: {status}"
        return status

    def until(self, reached: Callable[[], bool], what: str, patience: float = PATIENCE_S) -> None:
        end = time.monotonic() + patience
        while not reached():
            assert not self.errors, "\n".join(self.errors)
            assert time.monotonic() < end, f"there were not {what} after {patience:g} s: " + str(
                {name: self._status(name) for name in self.members})
            time.sleep(0.02)

    # --- clients --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the clients. Writers write where the primary was last seen, some anywhere: they find a successor while
        the others still wait for its predecessor."""
        for number, work in enumerate([self._write] * 4 + [self._write_anywhere] * 3 + [self._read] * 5):
            self._clients.append(threading.Thread(target=self._run, args=(work, random.Random(number))))
            self._clients[-1].start()

    def end(self) -> None:
        self._stopping.set()
        for client in self._clients:
            client.join(2 * PATIENCE_S)
            assert not client.is_alive(), "a client hangs"
        assert not self.errors, "\n".join(self.errors)

    def _run(self, work: Callable[[random.Random], None], rng: random.Random) -> None:
        try:
            while not self._stopping.wait(rng.uniform(0, 2 * PAUSE_S)):
                work(rng)
        except BaseException as error:
            self.errors.append(f"a client failed: {error!r}")

    def write(self, to: str) -> None:
        """One write more, on this member. Its outcome is in the history."""
        self._write(random.Random(0), to)

    def _write_anywhere(self, rng: random.Random) -> None:
        self._write(rng, rng.choice("abc"))

    def _write(self, rng: random.Random, to: str | None = None) -> None:
        number, to = next(self._numbers), self.primary if to is None else to
        write = Write(number, number // LIST if self._kind == "memory" else 0, time.monotonic(), 0.0, "unknown")
        try:
            answer = self.members[to].ask("append", number=number)
        except NotThere as gone:
            answer = {"error": "OutcomeUnknown" if gone.sent else "NotPrimary"}
        write.ended = time.monotonic()
        kind = answer.get("error")
        if kind is None:
            write.outcome, write.txid = "acknowledged", answer["txid"]
            self.acknowledged_at = max(self.acknowledged_at, write.began)
        elif kind in REFUSED:
            write.outcome = "refused"
        elif kind not in UNKNOWN:
            self.errors.append(f"append of {number} on {to} ended with {kind}: {answer['message']}")
        if kind is None:
            self.primary = to
        elif self.primary == to:
            self.primary = rng.choice("abc")
        self.history.writes.append(write)

    def _read(self, rng: random.Random) -> None:
        member = self.members[rng.choice("abc")]
        last = self.history.writes[-1].at if self.history.writes else 0
        read = Read(member.life, rng.random() < 0.5, time.monotonic(), 0.0, 0, max(0, last - 1), {})
        try:
            answer = member.ask("read", linearizable=read.linearizable, least=read.least)
        except NotThere:
            return
        read.ended = time.monotonic()
        if "error" not in answer:
            read.txid, read.lists = answer["txid"], _lists(answer["lists"])
            self.history.reads.append(read)
        elif answer["error"] not in NO_READ:
            self.errors.append(f"a read on {member.life} ended with {answer['error']}: {answer['message']}")

    # --- the end --------------------------------------------------------------------------------------------------

    def wait_writing(self, what: str) -> float:
        """Wait until a write is acknowledged that began after now. Returns how long that took."""
        began = time.monotonic()
        self.until(lambda: self.acknowledged_at > began, f"commits again after {what}", HEALED_S)
        return time.monotonic() - began

    def agree(self) -> None:
        """Wait until all members have one log, and show all of it; keep what they show."""
        def same() -> bool:
            found = [self._status(name) for name in self.members]
            return (len({json.dumps(status.get("end")) for status in found}) == 1
                    and all(status.get("end") and status["published"] == status["durable"] == status["end"][1]
                            for status in found))

        self.until(same, "equal members")
        for name, member in self.members.items():
            content = member.ask("content")
            if content.get("error") == "StoreClosed":  # it has just begun to join again
                self.until(same, "equal members")
                content = member.ask("content")
            assert "error" not in content, content
            status = self._status(name)
            end = status["end"]
            # Not content["txid"]: the last record may be the first one of an epoch, which no view shows.
            self.history.finals[name] = Final(status["published"], content["digest"], (end[0], end[1], end[2]),
                                              _lists(content["lists"]))

    def close(self) -> None:
        for member in self.members.values():
            member.close()


def _lists(lists: dict[str, list[int]]) -> dict[int, list[int]]:
    return {int(at): numbers for at, numbers in lists.items()}


class Nemesis:
    """Makes faults, drawn from a seed. Sometimes a second one begins while the first one stands."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.longest = 0.0
        self._cluster = cluster
        self._random = random.Random(seed)
        self._log = (cluster.root / "nemesis.log").open("w", buffering=1)
        kinds: Faults = {"kill": (3, self._kill), "pause": (4, self._pause), "switch-over": (3, self._switch_over),
                         "cut off and kill": (3, self._cut_off_and_kill), "kill all": (1, self._kill_all)}
        self._kinds = kinds | cluster.wires.faults()

    def run(self, count: int) -> None:
        """Make `count` faults. After each, commits must come back."""
        try:
            while self.counts.total() < count:
                name = self._fault(set(), set(), count)
                took = self._cluster.wait_writing(name)
                self.longest = max(self.longest, took)
                self._note(f"commits again, {took:.2f} s after {name}")
                time.sleep(CALM_S)
        finally:
            self._log.close()

    def _fault(self, kinds: set[str], hit: set[str], count: int) -> str:
        rng = self._random
        names = [name for name in self._kinds if name not in kinds]
        kind = rng.choices(names, [self._kinds[name][0] for name in names])[0]
        free = sorted(set("abc") - hit)
        to = self._cluster.primary if rng.random() < 0.6 and self._cluster.primary in free else rng.choice(free)
        self.counts[kind] += 1
        lasts = rng.uniform(0.1, 2.2) * TTL if kind != "pause" else rng.uniform(1.1, 2.2) * TTL
        name = f"{kind} {to} for {lasts:.1f} s"
        self._note(f"begin {name}")
        with self._kinds[kind][1](to):
            if not kinds and rng.random() < 0.3 and self.counts.total() < count and kind != "kill all":
                time.sleep(lasts / 2)
                name += " and " + self._fault({kind, "kill all", "switch-over", "cut off and kill"}, {to}, count)
            else:
                time.sleep(lasts)
        self._note(f"end {kind} {to}")
        return name

    def _note(self, what: str) -> None:
        now = time.time()
        self._log.write(f"{time.strftime('%H:%M:%S', time.localtime(now))}.{int(now % 1 * 1000):03} {what}\n")

    @contextlib.contextmanager
    def _kill(self, name: str) -> Iterator[None]:
        with self._cluster.wires.dead(name):
            self._cluster.members[name].kill()
            try:
                yield
            finally:
                self._cluster.start(name)

    @contextlib.contextmanager
    def _kill_all(self, _: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in self._cluster.members:
                stack.enter_context(self._kill(name))
            yield

    @contextlib.contextmanager
    def _pause(self, name: str) -> Iterator[None]:
        self._cluster.send(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self._cluster.send(name, signal.SIGCONT)

    @contextlib.contextmanager
    def _switch_over(self, name: str) -> Iterator[None]:
        with contextlib.suppress(NotThere):
            self._cluster.members[self._cluster.primary].ask("switch over", to=name)
        yield

    @contextlib.contextmanager
    def _cut_off_and_kill(self, name: str) -> Iterator[None]:
        """What it takes while nobody hears it is only there, and it dies with that."""
        with self._cluster.wires.silent(name):
            time.sleep(0.3 * TTL)
            with self._kill(name):
                yield


def torture(root: Path, kind: str, faults: int, seed: int, wires: Links | Spaces, porcupine: Porcupine) -> str:
    """Run a cluster under `faults` faults, and check everything. Returns the figures."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(wires)
        cluster = stack.enter_context(Cluster(root, kind, wires))
        nemesis = Nemesis(cluster, seed)
        cluster.begin()
        cluster.wait_writing("the start")
        nemesis.run(faults)
        cluster.end()
        cluster.agree()
        cluster.close()
        history = cluster.history
    judged = time.monotonic()
    problems = check(history)
    if porcupine.why_not is None:
        problems += porcupine.check(history)
        said = f"porcupine agrees, both checks took {time.monotonic() - judged:.1f} s"
    else:
        said = f"NOT TRIED: porcupine, {porcupine.why_not}"
    assert not problems, "\n".join([f"seed {seed}, {len(problems)} problems:", *problems[:20]])
    assert nemesis.counts.total() == faults
    outcomes = Counter(write.outcome for write in history.writes)
    assert outcomes["acknowledged"] >= 10 * faults
    linearizable = sum(read.linearizable for read in history.reads)
    assert linearizable >= faults
    return (f"{nemesis.counts.total()} faults ({', '.join(f'{n} {k}' for k, n in sorted(nemesis.counts.items()))}) in "
            f"{time.monotonic() - began:.0f} s, seed {seed}: {dict(outcomes)}, {len(history.reads)} reads, "
            f"{linearizable} of them linearizable, commits again after at most {nemesis.longest:.1f} s, {said}")
