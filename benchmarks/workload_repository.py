"""Repositories: a first image, a later one, archived log, restores, memory, and a long archive.

The store runs in a process of its own and serves HTTP on loopback; everything is on one file system, and the page cache
holds what is read. The limits are `cp` of the image's files plus fsync, and reading, hashing and compressing them with
zstd in as many threads as there are processors. A peer is restic, on a copy of the same files, if it is installed.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

from ..backup import Keep, Repository
from ..backup.connection import Connection
from ..backup.repository import archiver as archiving
from ..engine import MemoryEngine, Store
from ..engine.source.local import LocalSource
from .child import Child
from .harness import Bench, Line, Samples
from .large_store import large_store, size_of
from .limits import copy_and_sync

MIB = 1 << 20
_CHUNK = 4 << 20


def run(bench: Bench) -> Iterator[Line]:
    store = large_store(bench)
    with bench.scratch("repository") as place, Child(f"{__package__}.store_child", str(store)) as server:
        uri = server.hear("open")["uri"]
        if uri is None:
            raise RuntimeError("the backup service found no free port from 6362 to 6372")
        yield from _images(bench, place, uri, server)
        server.stop()
    yield from _memory(bench, store)
    with bench.scratch("pieces") as place:
        yield from _pieces(bench, place)


def _fresh(place: Path) -> Callable[[], Path]:
    numbers = itertools.count()
    return lambda: place / str(next(numbers))


def _images(bench: Bench, place: Path, uri: str, server: Child) -> Iterator[Line]:
    fresh = _fresh(place)
    kept = fresh()
    repository = Repository.init(kept)
    first = repository.backup(uri)
    restored = fresh()
    repository.restore(restored)
    files = fresh()
    shutil.copytree(restored / "gen-000001" / "state", files)
    size, copied = first.image_bytes, place / "copied"

    def timed(work: Callable[[], object], unit: int = size) -> Callable[[], float]:
        def once() -> float:
            os.sync()
            began = perf_counter()
            work()
            return unit / (perf_counter() - began) / MIB

        return once

    def image() -> None:
        with Repository.init(fresh()) as made:
            made.backup(uri)

    def cp() -> float:
        os.sync()
        seconds = copy_and_sync(files, copied)
        shutil.rmtree(copied)
        return size / seconds / MIB

    contestants = {"ours": timed(image), "cp": cp, "zstd": timed(lambda: _zstd(files, fresh()))}
    if shutil.which("restic") is not None:
        contestants["restic"] = timed(lambda: _restic(files, fresh()))
    figures = bench.interleave("first image", contestants, rounds=bench.scale.load_rounds)
    what = f"first image of {size / MIB:,.0f} MiB over HTTP"
    slower = min(("cp", "zstd"), key=lambda name: figures[name].median)
    yield Line(workload=what, figure=figures["ours"], unit="MiB/s", peer_figure=figures[slower], target=0.7,
               peer="cp + fsync" if slower == "cp" else "zstd and SHA-256 of the same files",
               note=f"stored as {first.new_bytes / MIB:,.1f} MiB")
    if "restic" in figures:
        yield Line(workload=what, figure=figures["ours"], unit="MiB/s", peer="restic of the same files",
                   peer_figure=figures["restic"], target=1.0)

    stored: list[float] = []

    def later() -> float:
        server.tell(f"commit {bench.scale.incremental}")
        server.hear("committed")
        os.sync()
        began = perf_counter()
        report = repository.backup(uri)
        seconds = perf_counter() - began
        stored.append(report.new_bytes / MIB)
        return seconds

    def read() -> float:
        os.sync()
        began = perf_counter()
        for path in files.iterdir():
            _read(path)
        return perf_counter() - began

    figures = bench.interleave("later image", {"ours": later, "read": read}, rounds=bench.scale.load_rounds)
    yield Line(workload=f"later image, after {bench.scale.incremental:,} transactions", figure=figures["ours"],
               unit="s", better="less", peer="reading and hashing the image", peer_figure=figures["read"],
               note=f"stored {sum(stored) / len(stored):,.2f} MiB")

    def restore() -> None:
        shutil.rmtree(restored)
        repository.restore(restored)

    figures = bench.interleave("restore", {"ours": timed(restore), "cp": cp}, rounds=bench.scale.load_rounds)
    yield Line(workload=f"restore of {size / MIB:,.0f} MiB", figure=figures["ours"], unit="MiB/s", target=0.8,
               peer="cp + fsync of the same files", peer_figure=figures["cp"],
               note="blocks compared with their digests; opening checks every page of the graph")

    def whole() -> float:
        shutil.rmtree(restored)
        began = perf_counter()
        repository.restore(restored)
        return perf_counter() - began

    def delta() -> float:
        began = perf_counter()
        repository.restore(restored, delta=True)
        return perf_counter() - began

    figures = bench.interleave("restore over what is there", {"whole": whole, "delta": delta},
                               rounds=bench.scale.load_rounds)
    yield Line(workload="restore over an equal directory (--delta)", figure=figures["delta"], unit="s", better="less",
               peer="the whole restore", peer_figure=figures["whole"], target=0.3)
    yield from _archived(bench, repository, uri, server, first.seconds)
    repository.close()


def _archived(bench: Bench, repository: Repository, uri: str, server: Child, image: float) -> Iterator[Line]:
    """The log of some transactions, archived from the running store. `image`: seconds that the first image took."""
    count, figures = bench.scale.incremental, list[float]()
    with Connection().opened(uri) as source:
        archiver = repository.archiver(source)
        archiver.step()
        for number in range(bench.scale.load_rounds):
            bench.say(f"archiving: round {number + 1} of {bench.scale.load_rounds}")
            server.tell(f"commit {count}")
            server.hear("committed")
            began = perf_counter()
            done = archiver.step()
            figures.append(perf_counter() - began)
            if done.transactions != count:
                raise RuntimeError(f"{done.transactions} transactions were archived, not {count}")
        archiver.close()
    yield Line(workload=f"archiving {count:,} transactions", figure=Samples(tuple(figures)), unit="s", better="less",
               peer="the first image", peer_figure=Samples((image,) * len(figures)), target=0.01)


def _memory(bench: Bench, store: Path) -> Iterator[Line]:
    with bench.scratch("memory") as place, Child(f"{__package__}.memory_child", str(store), str(place / "repository"),
                                                 "--repository") as child:
        said = child.hear("memory", timeout=600)
    yield Line(workload=f"memory of an image of {said['image'] / MIB:,.0f} MiB, store and backup in one process",
               figure=Samples(((said["peak_own"] - said["before_own"]) / MIB,)), unit="MiB", better="less",
               target=100.0, note="above what the process held before, without pages of mapped files")


def _read(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.digest()


def _zstd(files: Path, into: Path) -> None:
    import zstandard

    into.mkdir()
    for path in files.iterdir():
        digest = hashlib.sha256()
        compressor = zstandard.ZstdCompressor(level=1, threads=-1)
        with path.open("rb") as file, (into / path.name).open("wb") as made:
            with compressor.stream_writer(made, closefd=False) as writer:
                while piece := file.read(_CHUNK):
                    digest.update(piece)
                    writer.write(piece)
            made.flush()
            os.fsync(made.fileno())


def _restic(files: Path, into: Path) -> None:
    environ = {**os.environ, "RESTIC_PASSWORD": "benchmark", "RESTIC_CACHE_DIR": f"{into}-cache"}
    for command in ("init",), ("backup", str(files)):
        subprocess.run(["restic", "-q", "-r", str(into), *command], check=True, env=environ, capture_output=True)


def _pieces(bench: Bench, place: Path) -> Iterator[Line]:
    """A long archive: how long it takes to look at it and to expire it."""
    count = bench.scale.recovery // 100
    with Store.open(place / "store", MemoryEngine, create=True) as store, Repository.init(place / "repo") as repository:
        with store.transaction() as tx:
            tx.put(b"first", b"")
        repository.backup(store)
        archiver = repository.archiver(LocalSource(store))
        bench.say(f"archiving {count:,} pieces")
        for n in range(count):
            with store.transaction("relaxed") as tx:
                tx.put(b"%d" % (n % 100), b"%d" % n)
            store.wait(n + 2)
            archiver.step()
        archiver.close()
        repository.backup(store)
        began = perf_counter()
        with Repository.open(place / "repo") as opened:
            opened.info()
        looked = perf_counter() - began
        began = perf_counter()
        repository.restore(place / "restored")
        restored = perf_counter() - began
        began = perf_counter()
        gone = repository.expire(Keep(last=1, points="none"))
        expired = perf_counter() - began
    name = f"an archive of {count:,} pieces, merged by {archiving.FAN_IN}"
    for what, seconds in (("info", looked), ("restore", restored), (f"expiry of {gone.objects:,} objects", expired)):
        yield Line(workload=f"{name}: {what}", figure=Samples((seconds,)), unit="s", better="less",
                   note=f"{size_of(place / 'repo') / MIB:,.1f} MiB left")
