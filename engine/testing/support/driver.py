"""Drives an engine by its contract alone: no store, no log, one thread. Beside it, a model of every transaction.

What the kit would do is done here in the open, one call at a time: transactions end as records, records are applied or
staged and published, the state is checkpointed, reopened, copied file by file. The records are the log: all of them are
kept, so a state at any position can be brought to any later one and compared with the model there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...contract.engine import BulkEngine, Context, Engine, StagingEngine
from ...contract.view import View
from ...env import REAL, Env, Files
from ...model.positions import Position, origin
from ...model.records import Attachment, Record
from ...wal.attachments import AttachmentWriter
from .attended import doing
from .contract import scratch
from .crash_images import copy_running, read_image
from .modelled import difference
from .workload import Operation, Workload

ORIGIN = origin(b"a store's own id")


class Driver:
    """An engine in `directory`.

    Attributes:
        work: the engine's workload.
        context: what it is opened with.
        engine: the engine.
        records: what it was given, in order.
        models: the model after each of them; `models[0]` is that of an empty store.
        published: the last transaction that views are to show.
        is_open: whether the engine is.
    """

    def __init__(self, work: Workload, directory: Path, env: Env = REAL) -> None:
        """Makes the state in `directory`, which is made if it is missing, and opens it."""
        self.work = work
        self.directory = directory
        self.context = Context(env, work.opened_with)
        self.records: list[Record] = []
        self.models: list[Any] = [work.new_model()]
        self.published = 0
        env.files.make_directory(directory)
        doing("create and open")
        work.engine.create(directory, ORIGIN, self.context)
        self.engine: Engine[Any, Any] = work.engine.open(directory, self.context)
        self.is_open = True
        self._made = 0

    def close(self) -> None:
        """Close the engine. May be called twice."""
        if self.is_open:
            self.is_open = False
            doing("close")
            self.engine.close()

    @property
    def end(self) -> Position:
        """Of the last transaction."""
        return self.records[-1].position if self.records else ORIGIN

    def position(self, txid: int) -> Position:
        return self.records[txid - 1].position if txid else ORIGIN

    # --- transactions ----------------------------------------------------------------------------------------------

    def commit(self, operations: list[Operation]) -> bool:
        """Run one transaction and apply it; whether it wrote anything."""
        record = self.tx(operations)
        if record is not None:
            self.apply(record)
        return record is not None

    def tx(self, operations: list[Operation], *, stage: bool = False) -> Record | None:
        """Run one transaction to its record, and stage it if asked to; None if it wrote nothing."""
        doing("stage" if stage else "run", "a transaction of", operations)
        model = self.models[-1].copy()
        tx = self.engine.begin()
        try:
            self.work.run(tx, model, operations)
            payload = tx.payload()
            assert type(payload) is bytes, f"payload() gives {type(payload).__name__}, not bytes"
            assert payload == tx.payload(), "payload() called twice gave two different payloads"
            if not payload:
                same = self.work.expected(model) == self.work.expected(self.models[-1])
                assert same, "the transaction changed something, and its payload is empty"
                return None
            record = self.note(payload, model)
            if stage:
                assert isinstance(self.engine, StagingEngine)
                self.engine.stage(record, tx)
            return record
        finally:
            tx.close()

    def note(self, payload: bytes, model: Any, attachment: Attachment | None = None) -> Record:
        """Number and keep a transaction, with the model after it."""
        txid = len(self.records) + 1
        record = Record.make(self.end.chain, txid, 0, txid, self.engine.payload_version, payload, attachment)
        self.models.append(model)
        self.records.append(record)
        return record

    def apply(self, *records: Record) -> None:
        self.feed(self.engine, records)
        self.published = records[-1].txid

    def feed(self, engine: Engine[Any, Any], records: Sequence[Record], pieces: int = 1) -> None:
        """Have an engine apply records in this many batches, bulk loads by themselves."""
        doing("apply", len(records), "records")
        cuts = [len(records) * i // pieces for i in range(pieces + 1)]
        for start, stop in pairwise(cuts):
            batch: list[Record] = []
            for record in records[start:stop]:
                if record.attachment is None:
                    batch.append(record)
                    continue
                if batch:
                    _applied(engine, batch)
                    batch = []
                assert isinstance(engine, BulkEngine)
                engine.apply_bulk(record, self._attachments / record.attachment.name)
                say = f"apply_bulk of transaction {record.txid} left the position at {engine.position}"
                assert engine.position.txid >= record.txid, say
            if batch:
                _applied(engine, batch)

    def publish(self, txid: int) -> None:
        """Publish up to a transaction, if the engine stages."""
        assert isinstance(self.engine, StagingEngine)
        self.engine.publish(self.position(txid))
        self.published = txid

    def follow(self, other: Driver, pieces: int = 1) -> None:
        """Apply what another driver's engine was given and this one's was not, in this many batches."""
        missing = other.records[len(self.records) :]
        self.records += missing
        self.models += other.models[len(self.models) :]
        self.feed(self.engine, missing, pieces)
        self.published = len(self.records)

    def bulk(self, number: int) -> Record:
        """The workload's bulk load with this number, written and recorded. It is not applied yet."""
        assert isinstance(self.engine, BulkEngine)
        model = self.models[-1].copy()
        load = self.work.bulk_load(number, model)
        out = AttachmentWriter(self.context.env.files, self._attachments, f"{len(self.records):032x}.att")
        try:
            payload = self.engine.write_bulk(load, out)  # type: ignore[arg-type]  # a raw stream is binary I/O enough
            attachment = out.finish()
        except BaseException:
            out.abandon()
            raise
        assert payload, "the record of a bulk load has an empty payload"
        return self.note(payload, model, attachment)

    @property
    def _attachments(self) -> Path:
        return self.directory.with_name("attachments")

    def roll_back(self, operations: list[Operation]) -> None:
        """Run a transaction up to its payload, and drop it."""
        doing("roll back", operations)
        tx = self.engine.begin()
        self.work.run(tx, self.models[-1].copy(), operations)
        tx.payload()
        tx.close()

    # --- the durable state -----------------------------------------------------------------------------------------

    def checkpoint(self, upto: int | None = None) -> None:
        """Checkpoint what is published, or at least up to `upto`."""
        wanted = self.position(self.published if upto is None else upto)
        before = self.engine.position
        doing("checkpoint")
        reached = self.engine.checkpoint(wanted)
        say = f"checkpoint({wanted}) of a state at {before}, with transaction {self.published} published,"
        assert reached.txid >= wanted.txid, f"{say} says that it reached {reached}, which is less than it was asked for"
        assert reached.txid >= before.txid, f"{say} says that it reached {reached}, which is behind where it was"
        limit = max(self.published, before.txid)
        assert reached.txid <= limit, f"{say} says that it reached {reached}, which was never published"
        at = self.engine.position
        assert reached == at, f"{say} says that it reached {reached}, and is at {at}"
        assert reached == self.position(reached.txid), f"{say} reached {reached}, not a position of this history"
        if wanted.txid <= before.txid:
            assert reached == before, f"{say} had nothing to do, and moved to {reached}"

    def reopen(self) -> None:
        """Close without a checkpoint, open and recover."""
        self.close()
        self.engine = self.recovered(self.directory)
        self.is_open = True
        self.published = len(self.records)

    def opened(self, directory: Path, *, at: Position | None = None, read_only: bool = False) -> Engine[Any, Any]:
        """Open what is in `directory`, without any log."""
        doing("open")
        engine = self.work.engine.open(directory, self.context, at=at, read_only=read_only)
        try:
            found = engine.position
            assert at is None or found == at, f"opened with at={at}, the engine says that it is at {found}"
            had = len(self.records)
            known = found.txid <= had and found == self.position(found.txid)
            assert known, f"the engine opens at {found}, which is not a position of the {had} transactions it had"
        except BaseException:
            engine.close()
            raise
        return engine

    def recovered(self, directory: Path, *, at: Position | None = None, upto: int | None = None,
                  read_only: bool = False) -> Engine[Any, Any]:
        """Open what is in `directory` and apply the records from its position on, in two batches."""
        engine = self.opened(directory, at=at, read_only=read_only)
        try:
            self.feed(engine, self.records[engine.position.txid : upto], pieces=2)
        except BaseException:
            engine.close()
            raise
        return engine

    # --- files -----------------------------------------------------------------------------------------------------

    def image(self) -> dict[str, bytes]:
        """Every byte of an image made now, by name."""
        doing("make and read an image")
        image = self.engine.image()
        try:
            return read_image(image)
        finally:
            image.close()

    def copied(self, contents: Mapping[str, bytes]) -> Path:
        """A new directory with these files."""
        path = self._beside()
        put_files(self.context.env.files, path, contents)
        return path

    def killed(self) -> Path:
        """A new directory with all files of the state as they are now: what a process that is killed leaves. Not for a
        simulated disk. The copy is of one moment, although a database library may tidy up in threads of its own."""
        image = self._beside()
        copy_running(self.directory, image)
        return image

    def _beside(self) -> Path:
        self._made += 1
        return self.directory.with_name(f"copy-{self._made}")

    # --- comparing -------------------------------------------------------------------------------------------------

    def expected(self, txid: int) -> Any:
        return self.work.expected(self.models[txid])

    def compare(self, view: View, what: str = "the view", txid: int | None = None) -> None:
        """Compare a view with the model at a transaction: the one that it must show, and says that it shows."""
        doing("read", what)
        at = view.txid if txid is None else txid
        assert view.txid == at, f"{what} says that it shows transaction {view.txid}, and should be at {at}"
        assert 0 <= at <= len(self.records), f"{what} says that it shows transaction {at} of {len(self.records)}"
        where = difference(self.work.content(view), self.expected(at))
        assert not where, f"{what} at transaction {at} is not what the model is there: {where}"
        findings = list(view.check())
        assert findings == [], f"{what} at transaction {at} is right, and its check() finds {findings[:3]}"

    def compare_state(self, engine: Engine[Any, Any] | None = None, txid: int | None = None,
                      what: str = "a new view") -> None:
        """Compare what an engine (or this one) shows now with the model at `txid` (or at what is published)."""
        with (engine or self.engine).view() as view:
            self.compare(view, what, self.published if txid is None else txid)

    def digest(self, engine: Engine[Any, Any] | None = None) -> bytes:
        """The digest of what an engine (by default this one) shows now."""
        with (engine or self.engine).view() as view:
            digest = view.digest()
        assert type(digest) is bytes, f"digest() gives {type(digest).__name__}, not bytes"
        assert len(digest) == 16, f"digest() gives {len(digest)} bytes, not 16"
        return digest


def _applied(engine: Engine[Any, Any], records: Sequence[Record]) -> None:
    given = list(records)
    engine.apply(given)
    assert given == records, "apply() changed the list of records that it was given, which the kit goes on using"


@contextmanager
def driven(work: Workload) -> Iterator[Driver]:
    """A driver in a directory of its own, whose engine is closed in the end."""
    with scratch() as place:
        it = Driver(work, place / "state", REAL)
        try:
            yield it
        finally:
            it.close()


def put_files(files: Files, directory: Path, contents: Mapping[str, bytes]) -> None:
    """Make these files below a directory that is not there yet."""
    files.make_directory(directory)
    for name, data in contents.items():
        files.make_directory((directory / name).parent)
        file = files.open(directory / name, "create")
        try:
            file.pwrite(data, 0)
        finally:
            file.close()
