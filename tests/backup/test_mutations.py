"""Tests that mutate the files of a backup, and verify it, restore it or add to it, in other processes.

What is found is one of the kit's errors. Anything else that comes to an end must have come to the right one: `verify`
to the digest that the store had, a restore to the model at the transaction that it names, which is the last one unless
another was asked for. After an incremental, or the full backup that was taken in its stead, the same holds.
"""

from __future__ import annotations

import pickle
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads import WORKLOADS

from holdfast.backup.info import info
from holdfast.backup.restore import restore
from holdfast.backup.run import run
from holdfast.backup.testing.world import SETTINGS, World
from holdfast.backup.verify import verify
from holdfast.engine.errors import HoldfastError
from holdfast.engine.store.store import Store
from holdfast.engine.testing.engine.mutated_files import shown, tried
from holdfast.engine.testing.support.contract import Contract, check
from holdfast.engine.testing.support.forks import Say
from holdfast.engine.testing.support.modelled import difference
from holdfast.engine.testing.support.mutations import Mutation, Subject, Tree, files_of, mutated
from holdfast.engine.testing.support.workload import Workload


@dataclass
class Case:
    """A backup to be mutated.

    Attributes:
        tree, older: its files, and as they once were.
        source: those of its store, closed, which went on.
        models: the content after each transaction of the store.
        digests: by txid.
        last: where the backup ends.
    """

    tree: Tree
    older: Tree
    source: Tree
    models: list[Any]
    digests: dict[int, bytes]
    last: int


class Mutations(Contract):
    """See the module's text."""

    @check()
    def test_a_mutated_backup_shows_nothing_else(self, work: Workload) -> None:
        """Whatever happens to one file of a backup, verifying it, restoring it or adding to it raises one of the kit's
        errors, or comes to what was committed; it does not crash, hang, raise a bare Python error, or come to anything
        else."""
        tried(self, work, "mutations of backups", _cases, _backups, self.effort.mutations // 2)


class TestMemory(Mutations):
    workload = staticmethod(WORKLOADS["memory"])


class TestRecords(Mutations):
    workload = staticmethod(WORKLOADS["records"])


class TestGraph(Mutations):
    workload = staticmethod(WORKLOADS["graph"])


class TestSqlite(Mutations):
    workload = staticmethod(WORKLOADS["sqlite"])


class TestRocksdb(Mutations):
    workload = staticmethod(WORKLOADS["rocksdb"])


def _cases(work: Workload, root: Path, histories: list[Any]) -> list[Case]:
    w = World(work, root / "made")
    with w:
        w.commit_all(histories[:3])
        w.add()
        w.store.checkpoint()
        w.commit_all(histories[3:5])
        w.back_up()
        older = files_of(w.target)
        w.commit_all(histories[5:8])
        w.add()
        w.back_up()
        last = w.last
        w.add(2)
    case = Case(files_of(w.target), older, files_of(w.path), list(w.models), dict(w.digests), last)
    shutil.rmtree(root / "made")
    return [case]


def _backups(work: Workload, say: Say, root: Path, seed: int, mutations: int) -> None:
    (case,) = pickle.loads((root / "cases").read_bytes())

    def look(path: Path, mutation: Mutation, number: int) -> None:
        _WAYS[number % len(_WAYS)](work, path, case)

    subject = Subject(case.tree, case.older)
    mutated(lambda number: subject, seed, range(mutations), root / "looks", look, lambda wrong: say("looked", wrong))


def _verified(work: Workload, path: Path, case: Case) -> None:
    with suppress(HoldfastError):  # what this does not need to read, `verify` may still find
        info(path)
    report = verify(path, engine=work.engine, options=work.options)
    last = report.bounds.last
    assert last == case.last, f"verify finds a backup to transaction {last}, and it was one to {case.last}"
    assert report.digest == case.digests[last].hex(), "verify finds another digest than the store had, and no error"


def _restored(work: Workload, path: Path, case: Case, txid: int | None = None, last: int | None = None) -> None:
    place = path.parent / "restored"
    report = restore(path, place, engine=work.engine, options=work.options, to_txid=txid)
    wanted = txid or last or case.last
    assert report.txid == wanted, f"a restore to {wanted} ended at transaction {report.txid}"
    with Store.open(place, work.engine, options=work.options, settings=SETTINGS, create=False) as store:
        found = shown(work, store)
        assert found is not None, "a restored store is wrong by the engine's own check, and the restore said nothing"
        assert found[0] == wanted, f"a store restored to {wanted} shows transaction {found[0]}"
        where = difference(found[1], work.expected(case.models[wanted]))
        assert not where, f"a store restored to {wanted} shows something else: {where}"


def _restored_to_a_point(work: Workload, path: Path, case: Case) -> None:
    _restored(work, path, case, case.last - 1)


def _added_to(work: Workload, path: Path, case: Case) -> None:
    source = path.parent / "source"
    for name, data in case.source.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    with Store.open(source, work.engine, options=work.options, settings=SETTINGS, create=False) as store:
        report = run(store, path)
        last = len(case.models) - 1
        assert report.to_txid == last, f"the run ended at transaction {report.to_txid}, the store at {last}"
    _restored(work, path, case, last=last)


_WAYS = (_verified, _restored, _added_to, _restored_to_a_point)
