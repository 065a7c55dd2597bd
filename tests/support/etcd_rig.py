"""etcd for tests: its members as real processes, on loopback or in namespaces, and a proxy that loses answers.

Without an etcd binary the test says so by the fault's name and is skipped, or fails: see `fault_rig.require`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from fault_rig import require
from namespaces import Network

_READY_S = 30


def etcd_binary() -> str:
    """Where etcd is, or the test is skipped or fails."""
    found = shutil.which("etcd") or shutil.which("/usr/bin/etcd")
    require("etcd", None if found else "etcd is not installed (Debian: etcd-server)")
    assert found is not None
    return found


class Etcd:
    """A cluster of etcd members in a directory. Ends them all at the end of the block."""

    def __init__(self, directory: Path, members: int = 1, *, tls: tuple[Path, Path, Path] | None = None,
                 token: str = "simple", network: Network | None = None) -> None:
        """`tls`: files with the authority, certificate and key; clients must show a certificate then. `token`: etcd's
        option --auth-token. `network`: has a namespace m0, m1 and so on for each member; else all are on loopback."""
        self._binary, self._directory, self._tls = etcd_binary(), directory, tls
        self._token, self._network = token, network
        self._hosts = [network.address(f"m{n}") if network else "127.0.0.1" for n in range(members)]
        ports = _free_ports(2 * members)
        self.ports, self._peers = ports[:members], ports[members:]
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * members

    @property
    def endpoints(self) -> list[tuple[str, int]]:
        return list(zip(self._hosts, self.ports, strict=True))

    def __enter__(self) -> Etcd:
        try:
            for member in range(len(self.ports)):
                self.start(member)
            for member in range(len(self.ports)):
                self.wait_healthy(member)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for member in range(len(self.ports)):
            self.kill(member)

    def start(self, member: int) -> None:
        """Start a member, unless it runs: two faults may have killed it, and both start it again at their ends."""
        running = self.processes[member]
        if running is not None and running.poll() is None:
            return
        scheme = "http" if self._tls is None else "https"
        peers = [f"http://{host}:{port}" for host, port in zip(self._hosts, self._peers, strict=True)]
        client, peer = f"{scheme}://{self._hosts[member]}:{self.ports[member]}", peers[member]
        cluster = ",".join(f"m{n}={url}" for n, url in enumerate(peers))
        command = [self._binary, "--name", f"m{member}", "--data-dir", str(self.data(member)),
                   "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
                   "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster, "--heartbeat-interval", "50",
                   "--election-timeout", "500", "--log-level", "error",
                   "--auth-token", self._token]
        if self._tls is not None:
            ca, cert, key = map(str, self._tls)
            command += ["--trusted-ca-file", ca, "--cert-file", cert, "--key-file", key, "--client-cert-auth"]
        if self._network is not None:
            command = self._network.inside(f"m{member}", command)
        with (self._directory / f"m{member}.log").open("ab") as log:
            self.processes[member] = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._directory)

    def data(self, member: int) -> Path:
        """Where the member keeps its data."""
        return self._directory / f"m{member}.etcd"

    def wait_healthy(self, member: int) -> None:
        """Wait until the member answers, and has a leader to ask."""
        end = time.monotonic() + _READY_S
        while time.monotonic() < end:
            process = self.processes[member]
            assert process is not None
            if process.poll() is not None:
                raise AssertionError(f"etcd ended: {self._log(member)}")
            with contextlib.suppress(OSError, ValueError):
                if self.post("/v3/kv/range", {"key": "aGVhbHRo"}, member)["header"]:
                    return
            time.sleep(0.05)
        raise AssertionError(f"etcd was not ready within {_READY_S} s: {self._log(member)}")

    def post(self, path: str, body: dict[str, Any], member: int = 0, *, token: str = "") -> Any:
        context = None
        if self._tls is not None:
            context = ssl.create_default_context(cafile=str(self._tls[0]))
            context.load_cert_chain(self._tls[1], self._tls[2])
        scheme = "http" if context is None else "https"
        request = urllib.request.Request(f"{scheme}://{self._hosts[member]}:{self.ports[member]}{path}",
                                         json.dumps(body).encode(), {"Authorization": token} if token else {})

        def ask() -> Any:
            with urllib.request.urlopen(request, timeout=5, context=context) as answer:
                return json.loads(answer.read())

        return ask() if self._network is None else self._network.call_inside(f"m{member}", ask)

    def kill(self, member: int) -> None:
        """SIGKILL, and wait for its end."""
        process, self.processes[member] = self.processes[member], None
        if process is not None:
            process.kill()
            process.wait()

    def send(self, member: int, number: signal.Signals) -> None:
        process = self.processes[member]
        assert process is not None
        process.send_signal(number)

    def _log(self, member: int) -> str:
        return (self._directory / f"m{member}.log").read_text(errors="replace")[-2000:]


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


class Proxy:
    """A TCP proxy in front of one port. It can lose answers, and cut its connections."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lose_answers = False
        self._open: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to), timeout=5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self._open += [near, far]
                threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while (data := one.recv(1 << 16)) and not (answers and self.lose_answers):
                other.sendall(data)
        for sock in (one, other):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End all connections; new ones are taken."""
        taken, self._open = self._open, []
        for sock in taken:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self.cut()
