"""PostgreSQL beside a cluster: a primary and two standbys on loopback, of which any one must hold each commit.

The clients are those of pgbench, which comes with PostgreSQL. PostgreSQL does not run as root: then it runs as the user
`postgres`, whom its package makes.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .etcd_peer import free_ports

_READY_S = 60.0
_STANDBYS = ("s1", "s2")
_SETTINGS = {"listen_addresses": "127.0.0.1", "wal_level": "replica", "max_wal_senders": "5",
             "synchronous_standby_names": f"ANY 1 ({', '.join(_STANDBYS)})"}
_SCRIPT = """\\set k random(1, 1000)
INSERT INTO kv VALUES (:k, decode(repeat('61', 64), 'hex')) ON CONFLICT (k) DO UPDATE SET v = excluded.v;
"""


def postgres_programs() -> Path | None:
    """The directory of PostgreSQL's programs, the newest that is here; None if there is none, or nobody may run it."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: int(place.parent.name))
    usable = [place for place in places if all((place / name).exists() for name in ("initdb", "postgres", "pgbench"))]
    if os.getuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return None
    return usable[-1] if usable else None


def _open_to_all(directory: Path) -> Path:
    """The deepest of a directory and those above it that every user can reach."""
    reached = Path("/")
    for place in [*reversed(directory.parents), directory]:
        if not place.stat().st_mode & 0o001:
            break
        reached = place
    return reached


class Postgres:
    """See the module's text. A context manager: the servers are killed at the end."""

    def __init__(self, near: Path, programs: Path) -> None:
        """`near`: it works in a directory of its own in this one, or above it, if its user cannot reach that."""
        self._near, self._programs = near, programs
        self._user = "postgres" if os.getuid() == 0 else None
        ports = free_ports(1 + len(_STANDBYS))
        self._ports = dict(zip(("primary", *_STANDBYS), ports, strict=True))
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._place = Path(tempfile.mkdtemp(prefix="holdfast-postgres-", dir=_open_to_all(self._near)))
        try:
            if self._user is not None:
                shutil.chown(self._place, self._user)
            self._do("initdb", "-D", "primary", "-U", "postgres", "-A", "trust", "--no-instructions")
            with (self._place / "primary" / "postgresql.conf").open("a") as conf:
                conf.writelines(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())
            self._serve("primary")
            self._until("SELECT 1", "1")
            for name in _STANDBYS:
                self._do("pg_basebackup", "-D", name, "-R", "-X", "stream", "-c", "fast", "-d",
                         self._at("primary", name))
                self._serve(name)
            self._until("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'", str(len(_STANDBYS)))
            self._ask("CREATE TABLE kv (k int PRIMARY KEY, v bytea)")
        except BaseException:
            self._end()
            raise
        (self._place / "put.sql").write_text(_SCRIPT)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for server in self._servers:
            server.send_signal(signal.SIGQUIT)  # its children end with it, without a checkpoint
        for server in self._servers:
            server.wait()
        shutil.rmtree(self._place)

    def _at(self, name: str, caller: str = "bench") -> str:
        return f"host=127.0.0.1 port={self._ports[name]} user=postgres dbname=postgres application_name={caller}"

    def _do(self, program: str, *args: str) -> str:
        done = subprocess.run([str(self._programs / program), *args], cwd=self._place, user=self._user, check=False,
                              capture_output=True, text=True, env={**os.environ, "HOME": str(self._place)})
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def _serve(self, name: str) -> None:
        with (self._place / f"{name}.log").open("ab") as log:
            self._servers.append(subprocess.Popen(
                [str(self._programs / "postgres"), "-D", name, "-p", str(self._ports[name]), "-k", str(self._place)],
                cwd=self._place, user=self._user, stdout=log, stderr=log))

    def _ask(self, question: str) -> str:
        return self._do("psql", "-At", "-d", self._at("primary"), "-c", question).strip()

    def _until(self, question: str, answer: str) -> None:
        end = time.monotonic() + _READY_S
        while True:
            with contextlib.suppress(RuntimeError):
                if self._ask(question) == answer:
                    return
            if time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL is not ready after {_READY_S:.0f} s: {question}")
            time.sleep(0.1)

    def commits(self, clients: int, seconds: float) -> tuple[float, list[float]]:
        """Commits per second, and their latencies in milliseconds. Each puts 64 bytes under one of 1000 keys."""
        for old in self._place.glob("took.*"):
            old.unlink()
        told = self._do("pgbench", "-n", "-M", "prepared", "-f", "put.sql", "-c", str(clients), "-T",
                        str(max(1, round(seconds))), "-l", "--log-prefix=took", self._at("primary"))
        rate = next(float(line.split()[2]) for line in told.splitlines() if line.startswith("tps = "))
        took: list[Any] = [int(line.split()[2]) / 1000 for log in self._place.glob("took.*")
                           for line in log.read_text().splitlines()]
        return rate, took
