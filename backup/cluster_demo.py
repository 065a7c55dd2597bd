"""`holdfast cluster demo`: three members and a coordinator as real processes, and a primary that is killed.

The members are processes of this program that take one order a line on standard input, as JSON, and answer on standard
output. The coordinator is etcd if its program is found, and a directory otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil  # noqa: TID251  to find etcd, and to remove the demo's own directory
import signal
import socket  # noqa: TID251  a free port for etcd
import subprocess  # noqa: TID251  the demo is about processes
import sys
import tempfile  # noqa: TID251  the demo's own directory
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..engine.env import REAL
from ..engine.errors import HoldfastError, SourceUnavailable

CLUSTER = "demo"
TTL = 2.0
WRITES = 200
PATIENCE_S = 30.0
_PROGRAM = "from holdfast.backup.cluster_demo import member_process; member_process()"


class Failed(HoldfastError):
    """The demo found something that must not be."""

    hint = "report it, with what the demo has printed"


# --- in a member's process ----------------------------------------------------------------------------------------


def member_process() -> None:
    """Run a member, and do what standard input says until it ends."""
    from ..engine.builtin.graph import GraphEngine
    from ..replay.ha.service import Member

    directory, name, coordinator, create = sys.argv[1:5]
    with Member.open(directory, GraphEngine, cluster=CLUSTER, name=name, listen="127.0.0.1:0", coordinator=coordinator,
                     create=create == "create", ttl=TTL) as member:
        for line in sys.stdin:
            order = json.loads(line)
            try:
                answer = _obey(member, order)
            except HoldfastError as error:
                answer = {"error": type(error).__name__, "message": str(error)}
            print(json.dumps(answer), flush=True)  # noqa: T201  the answer to the order


def _obey(member: Any, order: dict[str, Any]) -> dict[str, Any]:
    if order["do"] == "write":
        with member.transaction() as tx:
            tx.add_node("Written", number=order["number"])
        return {"txid": tx.txid}
    if order["do"] == "ready":
        member.wait_ready(PATIENCE_S)
        return {"role": member.role, "address": member.address}
    if order["do"] == "content":
        with member.snapshot() as view:
            numbers = sorted(view.node(node).properties["number"] for node in view.nodes())
            return {"numbers": numbers, "digest": view.digest().hex(), "txid": member.position().txid}
    status: dict[str, Any] = member.status()
    return {"role": status["role"], "published": status.get("published", 0), "durable": status.get("durable", 0),
            "connected": status.get("connected", False), "address": member.address}


# --- in the demo's own process ------------------------------------------------------------------------------------


class _Process:
    """A member as a process. One order at a time."""

    def __init__(self, root: Path, name: str, coordinator: str, create: bool) -> None:
        self.name = name
        self._log = (root / f"{name}.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(root / f"{name}.db"), name, coordinator,
             "create" if create else "join"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)

    def ask(self, **order: Any) -> dict[str, Any]:
        """Raises `SourceUnavailable` if the process has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (BrokenPipeError, ValueError) as error:
            raise SourceUnavailable(f"member {self.name} has died") from error
        if not line:
            raise SourceUnavailable(f"member {self.name} has died")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """As `kill -9` does."""
        self._process.kill()
        self._end()

    def stop(self) -> None:
        """Let it close its store."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._end()

    def _end(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@contextlib.contextmanager
def _coordinator(root: Path, say: Callable[[str], None]) -> Iterator[str]:
    """The address of a coordinator that runs during the block."""
    program = shutil.which("etcd") or shutil.which("etcd", path="/usr/local/bin:/usr/bin:/usr/sbin")
    if program is None:
        say("coordinator: a directory, because no etcd was found here")
        yield f"file:{root / 'coordinator'}"
        return
    ports = _free_ports(2)
    client, peer = (f"http://127.0.0.1:{port}" for port in ports)
    with (root / "etcd.log").open("ab") as log:
        process = subprocess.Popen(
            [program, "--name", "demo", "--data-dir", str(root / "etcd"), "--listen-client-urls", client,
             "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
             "--initial-cluster", f"demo={peer}"], stdout=log, stderr=log,
            env={**os.environ, "ETCD_UNSUPPORTED_ARCH": "arm64"})
        try:
            say(f"coordinator: etcd ({program}) on {client}")
            yield f"etcd://127.0.0.1:{ports[0]}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def run_demo(say: Callable[[str], None]) -> dict[str, Any]:
    """Run it, and say each step. Returns figures and a summary. Raises `Failed` if anything acknowledged is missing, or
    members differ."""
    root = Path(tempfile.mkdtemp(prefix="holdfast-cluster-"))
    members: dict[str, _Process] = {}
    try:
        with _coordinator(root, say) as coordinator:
            try:
                return _play(root, coordinator, members, say)
            finally:
                for member in members.values():
                    member.stop()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _play(root: Path, coordinator: str, members: dict[str, _Process], say: Callable[[str], None]) -> dict[str, Any]:
    clock = REAL.clock
    began = clock.monotonic()

    def start(name: str, *, create: bool = False) -> dict[str, Any]:
        members[name] = _Process(root, name, coordinator, create)
        ready = members[name].ask(do="ready")
        if "error" in ready:
            raise Failed(f"member {name} did not get ready: {ready['message']}")
        return ready

    say(f"member a begins the cluster: {start('a', create=True)['role']}")
    for name in "bc":
        say(f"member {name} joins with an empty directory, and copies the store: {start(name)['role']}")
    _until(lambda: _voters(coordinator) == 3, "three voters")
    at = clock.monotonic()
    acknowledged = [_write(members["a"], number) for number in range(WRITES)]
    say(f"{WRITES} commits, each on the disks of two members when it returns: "
        f"{WRITES / (clock.monotonic() - at):,.0f} a second")
    members["a"].kill()
    killed = clock.monotonic()
    say("kill -9 of the primary")
    del members["a"]
    primary = _primary(members)
    failed_over = clock.monotonic() - killed
    say(f"member {primary.name} is the primary, {failed_over:.1f} s later (the lease is {TTL:g} s)")
    acknowledged += [_write(primary, number) for number in range(WRITES, WRITES + 50)]
    say(f"member a is started again: {start('a')['role']}")
    _until(lambda: len({members[n].ask(do="status")["published"] for n in members}) == 1, "equal members")
    contents = {name: member.ask(do="content") for name, member in members.items()}
    for name, content in contents.items():
        missing = set(acknowledged) - set(content["numbers"])
        if missing:
            raise Failed(f"member {name} lacks {len(missing)} commits that were acknowledged, such as {min(missing)}")
    if len({content["digest"] for content in contents.values()}) != 1:
        raise Failed(f"the members differ: { {name: c['digest'] for name, c in contents.items()} }")
    say(f"every member has all {len(acknowledged)} acknowledged commits, and the digest "
        f"{contents['a']['digest'][:16]}…")
    found = _back_up(root, members, acknowledged)
    say(f"a backup from a follower, restored: {found} commits, all that were acknowledged")
    seconds = clock.monotonic() - began
    return {"acknowledged": len(acknowledged), "failover_s": round(failed_over, 2), "seconds": round(seconds, 1),
            "summary": f"Every comparison held. {seconds:.0f} s in all."}


def _write(member: _Process, number: int) -> int:
    answer = member.ask(do="write", number=number)
    if "error" in answer:
        raise Failed(f"commit {number} on {member.name}: {answer['message']}")
    return number


def _voters(coordinator: str) -> int:
    from ..replay.ha.admin import Admin
    from ..replay.ha.coordinators.url import open_coordinator
    from ..replay.ha.peer.client import PeerClient

    with Admin(open_coordinator(coordinator, CLUSTER), PeerClient) as admin:
        document = admin.document()
        return 0 if document.joint is not None else len(document.voters)


def _primary(members: dict[str, _Process]) -> _Process:
    found: list[_Process] = []

    def look() -> bool:
        found[:] = [m for m in members.values() if m.ask(do="status")["role"] == "primary"]
        return bool(found)

    _until(look, "a primary")
    return found[0]


def _until(reached: Callable[[], bool], what: str) -> None:
    end, pause = REAL.clock.monotonic() + PATIENCE_S, REAL.scheduler.event()
    while not reached():
        if REAL.clock.monotonic() > end:
            raise Failed(f"there were not {what} within {PATIENCE_S:g} s")
        pause.wait(0.02)


def _back_up(root: Path, members: dict[str, _Process], acknowledged: list[int]) -> int:
    """Back up from the cluster, restore, and count. Raises `Failed` if something acknowledged is missing."""
    from ..engine.builtin.graph import GraphEngine
    from ..engine.store.store import Store
    from .restore import restore
    from .run import run

    run("ha://" + ",".join(m.ask(do="status")["address"] for m in members.values()), root / "backup")
    restore(root / "backup", root / "restored")
    with Store.open(root / "restored", GraphEngine, read_only=True) as store, store.snapshot() as view:
        numbers = {view.node(node).properties["number"] for node in view.nodes()}
    if missing := set(acknowledged) - numbers:
        raise Failed(f"the restored backup lacks {len(missing)} commits that were acknowledged")
    return len(numbers)
