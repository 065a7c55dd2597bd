"""A process that writes, archives, backs up and expires at once is killed at any moment, again and again, over one
repository: on a local disk, and in a bucket of a real server. After each kill everything is there that the process had
said, and the next process goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

import pytest
from fault_rig import served
from repository_crashes import Life, archived, garbage, is_whole, live, restorable, shows_a_life
from s3_rig import BUCKET, credentials, use, versitygw
from workloads import memory

from holdfast.backup.repository import names
from holdfast.backup.repository.expiring import Keep
from holdfast.backup.repository.repository import Repository
from holdfast.engine.store.store import Store
from holdfast.engine.testing import current_profile
from holdfast.engine.testing.support.children import Server

LONGEST_S = 0.7
"""Until a kill, after the process has begun to archive."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served("memory") as made:
        yield made


def kills(server: Server, place: Path, url: str, environ: Mapping[str, str]) -> Counter[str]:
    """As many kills as the profile wants. What the processes said, by kind."""
    drawn, said = Random(3), Counter[str]()
    Repository.init(url).close()
    reached = 0
    for round in range(current_profile().kills):
        child = server.start(live, Life(place / "store", url, environ, round))
        heard = [next(child.messages())]
        heard += child.messages(within=drawn.uniform(0, LONGEST_S))
        child.kill()
        heard += child.messages()
        child.discard()
        for kind, *rest in heard:
            assert kind != "broken", rest[0]
            said[kind] += 1
            if kind == "archived":
                reached = max(reached, rest[0])
        _is_there(place / f"restored {round}", url, reached)
    with Repository.open(url) as repository:
        repository.expire(Keep(points="none", abandoned="none"))
        info = is_whole(repository)
        assert len(info.images) == 1
        # A unit whose entry was never made goes once later ones have passed it: until then, it might still be made.
        assert not {name for name in garbage(repository) if not name.startswith(f"{names.MERGED}/")}
    return said


def _is_there(place: Path, url: str, reached: int) -> None:
    with Repository.open(url) as repository:
        info = is_whole(repository)
        points = restorable(info)
        assert max(archived(info), *points, 0) >= reached
        if points:
            for txid in {min(points), max(points)}:
                at = place / str(txid)
                assert repository.restore(at, to_txid=txid, engine=memory().engine).txid == txid
                with Store.open(at, memory().engine, read_only=True) as store, store.snapshot() as view:
                    shows_a_life(dict(view.items()))


def test_kills_over_a_local_disk(server: Server, tmp_path: Path) -> None:
    said = kills(server, tmp_path, str(tmp_path / "repository"), {})
    assert said["archived"] > 5
    assert said["image"]
    assert said["expired"]


@pytest.mark.fault("versitygw")
def test_kills_over_a_bucket(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    with versitygw(tmp_path / "versitygw") as port:
        use(monkeypatch, port)
        said = kills(server, tmp_path, f"s3://{BUCKET}/kills", {**credentials(port), "NO_PROXY": "127.0.0.1"})
    assert said["archived"] > 5
    assert said["image"]
    assert said["expired"]
