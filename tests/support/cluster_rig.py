"""A cluster of real processes under real faults: members, a coordinator, proxies between members, clients, a nemesis.

What clients saw is kept as a history (`histories.py`). A client believes what its member says, and tries another if
that is not the primary. A reply that a client waits for comes, or the member dies: a call that hangs fails the test.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etcd_rig import Etcd
from histories import Final, History, Read, Write, check
from member_worker import LIST
from porcupine_check import Porcupine

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


class Link:
    """A proxy in front of a port. It refuses connections, or holds all back. Members reach each other by one in front
    of each, and etcd by one each."""

    def __init__(self, to: int | None = None) -> None:
        self.port, self.to = _free_port(), _free_port() if to is None else to
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.mend()

    def mend(self) -> None:
        """Let everything through, what was held back too."""
        self._flows.set()
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def hold_back(self) -> None:
        """As a network does that drops packets for a while."""
        self._flows.clear()

    def refuse(self) -> None:
        """End all connections, and refuse new ones, as the machine of a dead process does."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            taken, self._open = self._open, []
        for sock in taken:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._flows.set()
        self.refuse()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with near:
            self._flows.wait()
            try:
                far = socket.create_connection(("127.0.0.1", self.to), timeout=5)
            except OSError:
                return
            far.settimeout(None)
            with far:
                with self._lock:
                    self._open += [near, far]
                back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
                back.start()
                self._pump(near, far)
                back.join()
                with self._lock:
                    self._open = [sock for sock in self._open if sock not in (near, far)]

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                self._flows.wait()
                other.sendall(data)
        for sock in (one, other):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Cluster:
    """Three members. `kind`: "memory" or "graph"."""

    def __init__(self, root: Path, kind: str, etcd: Etcd | None) -> None:
        self.root = root
        self.etcd = etcd
        self.members: dict[str, MemberProcess] = {}
        self.links = {name: Link() for name in "abc"}
        self.etcd_links = {} if etcd is None else {name: Link(etcd.ports[0]) for name in "abc"}
        self.history = History()
        self.errors: list[str] = []
        self.primary = "a"
        self.acknowledged_at = 0.0  # when the last write that was acknowledged had begun
        self._kind = kind
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
        for link in (*self.links.values(), *self.etcd_links.values()):
            link.close()

    # --- processes ------------------------------------------------------------------------------------------------

    def start(self, name: str, *, create: bool = False) -> None:
        self._lives[name] += 1
        link = self.links[name]
        coordinator = (f"etcd://127.0.0.1:{self.etcd_links[name].port}" if self.etcd_links else
                       f"file:{self.root / 'coordinator'}")
        self.members[name] = MemberProcess(
            f"{name}{self._lives[name]}",
            [sys.executable, str(_WORKER), str(self.root / name), name, f"127.0.0.1:{link.to}",
             f"127.0.0.1:{link.port}", coordinator, "create" if create else "join", str(TTL), self._kind],
            self.root / f"{name}.log")

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
            content, status = member.ask("content"), self._status(name)
            assert "error" not in content, content
            end = status["end"]
            self.history.finals[name] = Final(content["txid"], content["digest"], (end[0], end[1], end[2]),
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
        self._kinds: dict[str, Callable[[str], contextlib.AbstractContextManager[None]]] = {
            "kill": self._kill, "pause": self._pause, "switch-over": self._switch_over, "refuse": self._refuse,
            "hold back": self._hold_back, "cut off and kill": self._cut_off_and_kill, "kill all": self._kill_all}
        if cluster.etcd is not None:
            self._kinds |= {"isolate": self._isolate, "kill etcd": self._kill_etcd}
        self._weights = {"kill": 3, "pause": 4, "switch-over": 3, "refuse": 2, "hold back": 2, "cut off and kill": 3,
                         "kill all": 1, "isolate": 3, "kill etcd": 2}

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
        kind = rng.choices(names, [self._weights[name] for name in names])[0]
        free = sorted(set("abc") - hit)
        to = self._cluster.primary if rng.random() < 0.6 and self._cluster.primary in free else rng.choice(free)
        self.counts[kind] += 1
        lasts = rng.uniform(0.1, 2.2) * TTL if kind != "pause" else rng.uniform(1.1, 2.2) * TTL
        name = f"{kind} {to} for {lasts:.1f} s"
        self._note(f"begin {name}")
        with self._kinds[kind](to):
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
        self._cluster.links[name].refuse()
        self._cluster.members[name].kill()
        try:
            yield
        finally:
            self._cluster.start(name)
            self._cluster.links[name].mend()

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
    def _refuse(self, name: str) -> Iterator[None]:
        self._cluster.links[name].refuse()
        try:
            yield
        finally:
            self._cluster.links[name].mend()

    @contextlib.contextmanager
    def _hold_back(self, name: str) -> Iterator[None]:
        self._cluster.links[name].hold_back()
        try:
            yield
        finally:
            self._cluster.links[name].mend()

    @contextlib.contextmanager
    def _cut_off_and_kill(self, name: str) -> Iterator[None]:
        """What it takes while nobody hears it is only there, and it dies with that."""
        self._cluster.links[name].hold_back()
        time.sleep(0.3 * TTL)
        with self._kill(name):
            yield

    @contextlib.contextmanager
    def _isolate(self, name: str) -> Iterator[None]:
        """The others take it for dead at once, and it does not hear of its successor."""
        self._cluster.etcd_links[name].hold_back()
        try:
            with self._refuse(name):
                yield
        finally:
            self._cluster.etcd_links[name].mend()

    @contextlib.contextmanager
    def _kill_etcd(self, _: str) -> Iterator[None]:
        etcd = self._cluster.etcd
        assert etcd is not None
        etcd.kill(0)
        try:
            yield
        finally:
            etcd.start(0)


def torture(root: Path, kind: str, faults: int, seed: int, porcupine: Porcupine, *, with_etcd: bool) -> str:
    """Run a cluster under `faults` faults, and check everything. Returns the figures."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        etcd = stack.enter_context(Etcd(root)) if with_etcd else None
        cluster = stack.enter_context(Cluster(root, kind, etcd))
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
