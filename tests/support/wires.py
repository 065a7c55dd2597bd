"""How the processes of a cluster reach each other, and what faults their network can have.

`Links` are proxies on loopback: they need no rights. `Spaces` is a real network, in namespaces of the kernel: a link
that is down, packets that are lost one by one or in one direction only, and all that TCP makes of it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from etcd_rig import Etcd
from namespaces import Network

NAMES = "abc"
Faults = dict[str, tuple[int, Callable[[str], AbstractContextManager[None]]]]
"""By name: how often, and what makes it for a member and ends it."""


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


class Links:
    """A proxy in front of each member, and one for each in front of etcd, which is one node. Without etcd, a directory
    is the coordinator."""

    def __init__(self, root: Path, *, with_etcd: bool) -> None:
        self._root = root
        self._etcd = Etcd(root) if with_etcd else None
        self._links = {name: Link() for name in NAMES}
        self._etcd_links = {} if self._etcd is None else {name: Link(self._etcd.ports[0]) for name in NAMES}

    def __enter__(self) -> Links:
        if self._etcd is not None:
            self._etcd.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for link in (*self._links.values(), *self._etcd_links.values()):
            link.close()
        if self._etcd is not None:
            self._etcd.__exit__()

    def inside(self, name: str, command: list[str]) -> list[str]:
        """The command that runs `command` on the machine of a member."""
        return command

    def listens(self, name: str) -> str:
        return f"127.0.0.1:{self._links[name].to}"

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self._links[name].port}"

    def coordinator(self, name: str) -> str:
        return (f"etcd://127.0.0.1:{self._etcd_links[name].port}" if self._etcd_links else
                f"file:{self._root / 'coordinator'}")

    def faults(self) -> Faults:
        made: Faults = {"refuse": (2, self.dead), "hold back": (2, self.silent)}
        if self._etcd is not None:
            made |= {"isolate": (3, self._isolate), "kill etcd": (2, self._kill_etcd)}
        return made

    @contextlib.contextmanager
    def dead(self, name: str) -> Iterator[None]:
        """The machine answers, and the member does not run on it."""
        self._links[name].refuse()
        try:
            yield
        finally:
            self._links[name].mend()

    @contextlib.contextmanager
    def silent(self, name: str) -> Iterator[None]:
        """Nobody hears of the member."""
        self._links[name].hold_back()
        try:
            yield
        finally:
            self._links[name].mend()

    @contextlib.contextmanager
    def _isolate(self, name: str) -> Iterator[None]:
        """The others take it for dead at once, and it does not hear of its successor."""
        self._etcd_links[name].hold_back()
        try:
            with self.dead(name):
                yield
        finally:
            self._etcd_links[name].mend()

    @contextlib.contextmanager
    def _kill_etcd(self, _: str) -> Iterator[None]:
        assert self._etcd is not None
        self._etcd.kill(0)
        try:
            yield
        finally:
            self._etcd.start(0)


class Spaces:
    """Three members and three nodes of etcd, each in a network namespace of its own. A fault of a member may also hit
    the node that has its number."""

    PORT = 7000

    def __init__(self, root: Path) -> None:
        self._nodes = [f"m{number}" for number in range(len(NAMES))]
        self._network = Network([*NAMES, *self._nodes])
        self._etcd = Etcd(root, len(self._nodes), network=self._network)

    def __enter__(self) -> Spaces:
        self._network.__enter__()
        try:
            self._etcd.__enter__()
        except BaseException:
            self._network.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._etcd.__exit__()
        self._network.__exit__()

    def inside(self, name: str, command: list[str]) -> list[str]:
        """The command that runs `command` on the machine of a member."""
        return self._network.inside(name, command)

    def listens(self, name: str) -> str:
        return f"{self._network.address(name)}:{self.PORT}"

    address = listens

    def coordinator(self, name: str) -> str:
        return "etcd://" + ",".join(f"{host}:{port}" for host, port in self._etcd.endpoints)

    def faults(self) -> Faults:
        return {"unplug": (3, self.silent), "deaf": (3, self._deaf), "mute": (3, self._mute),
                "cut from members": (2, self._cut_from_members), "cut from etcd": (2, self._cut_from_etcd),
                "lose packets": (3, self._lose_packets), "kill an etcd node": (2, self._kill_node),
                "pause an etcd node": (1, self._pause_node), "unplug an etcd node": (2, self._unplug_node),
                "kill all etcd": (1, self._kill_nodes)}

    @contextlib.contextmanager
    def dead(self, name: str) -> Iterator[None]:
        """The machine answers, and the member does not run on it: its kernel sees to that."""
        yield

    def silent(self, name: str) -> AbstractContextManager[None]:
        """Nobody hears of the member, and it hears of nobody."""
        return self._network.unplugged(name)

    def _others(self, name: str) -> list[str]:
        return [other for other in (*NAMES, *self._nodes) if other != name]

    def _deaf(self, name: str) -> AbstractContextManager[None]:
        """All hear it, and it hears nobody."""
        return self._network.dropped((other, name) for other in self._others(name))

    def _mute(self, name: str) -> AbstractContextManager[None]:
        """It hears all, and nobody hears it."""
        return self._network.dropped((name, other) for other in self._others(name))

    def _cut_from_members(self, name: str) -> AbstractContextManager[None]:
        return self._cut(name, NAMES.replace(name, ""))

    def _cut_from_etcd(self, name: str) -> AbstractContextManager[None]:
        return self._cut(name, self._nodes)

    def _cut(self, name: str, others: Iterable[str]) -> AbstractContextManager[None]:
        return self._network.dropped(pair for other in others for pair in ((name, other), (other, name)))

    def _lose_packets(self, name: str) -> AbstractContextManager[None]:
        return self._network.lossy(name, 30)

    def _unplug_node(self, name: str) -> AbstractContextManager[None]:
        return self._network.unplugged(self._nodes[NAMES.index(name)])

    @contextlib.contextmanager
    def _kill_node(self, name: str) -> Iterator[None]:
        node = NAMES.index(name)
        self._etcd.kill(node)
        try:
            yield
        finally:
            self._etcd.start(node)

    @contextlib.contextmanager
    def _kill_nodes(self, _: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in NAMES:
                stack.enter_context(self._kill_node(name))
            yield

    @contextlib.contextmanager
    def _pause_node(self, name: str) -> Iterator[None]:
        node = NAMES.index(name)
        self._etcd.send(node, signal.SIGSTOP)
        try:
            yield
        finally:
            self._etcd.send(node, signal.SIGCONT)
