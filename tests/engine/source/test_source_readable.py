"""How far a source's log can be read: never further than what no crash and no fail-over cuts off."""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from store_kinds import QUIET, STAGING, commit, until

from holdfast.engine.contract.plugin import Condition, Plugin
from holdfast.engine.errors import AheadOfSource
from holdfast.engine.model.records import LogRange
from holdfast.engine.source.http import wire
from holdfast.engine.source.local import LocalSource


class Gates(Plugin):
    """Publication waits for the test."""

    def __init__(self) -> None:
        self.met: Future[None] = Future()

    def logged(self, batch: LogRange) -> Condition:
        return Condition(met=self.met, timeout=600, gates_publication=True, name="the test")


def test_log_of_a_single_store_can_be_read_before_it_is_published(tmp_path: Path) -> None:
    """An archiver for which publication waits must get it. It is durable, and nothing cuts it off."""
    gates = Gates()
    with STAGING.open(tmp_path / "s", settings=QUIET, plugins=[gates]) as store, ThreadPoolExecutor(1) as pool:
        source = LocalSource(store)
        grant = source.lease("test", image=False, after=store.durable)
        committing = pool.submit(commit, STAGING, store, 1)
        until(lambda: store.durable.txid == 1)
        info = source.info()
        assert (info.published.txid, info.readable) == (0, store.durable)
        assert [record.txid for record in source.read_log(grant.id, grant.position, 1)] == [1]
        with pytest.raises(AheadOfSource, match="2 is asked for, and 1 is the last one"):
            list(source.read_log(grant.id, grant.position, 2))
        gates.met.set_result(None)
        committing.result(30)
    with STAGING.open(tmp_path / "s", settings=QUIET) as store:
        assert store.published == info.readable


def test_log_of_a_member_can_be_read_once_it_is_published(tmp_path: Path) -> None:
    """What is not may be cut off by the next primary."""
    with STAGING.open(tmp_path / "s", settings=QUIET) as store:
        commit(STAGING, store, 1)
        commit(STAGING, store, 2)
        shutil.copytree(store.directory, tmp_path / "member")  # its state has neither
    with STAGING.open(tmp_path / "member", settings=QUIET, replica=1) as store:
        source = LocalSource(store)
        info = source.info()
        assert (info.durable.txid, info.published.txid) == (2, 1)
        assert info.readable == info.published
        grant = source.lease("test", image=False, after=store.log.base)
        assert [record.txid for record in source.read_log(grant.id, grant.position, 1)] == [1]
        with pytest.raises(AheadOfSource):
            list(source.read_log(grant.id, grant.position, 2))


def test_an_older_service_lets_log_be_read_that_is_published(tmp_path: Path) -> None:
    with STAGING.open(tmp_path / "s", settings=QUIET) as store:
        commit(STAGING, store, 1)
        info = replace(LocalSource(store).info(), published=store.log.base)
        said = wire.info_to_wire(info)
        assert wire.info_from_wire(said) == info
        del said["readable"]
        assert wire.info_from_wire(said).readable == info.published
