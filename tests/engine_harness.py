"""Drives an engine by its contract alone: no store, no log, one thread. Beside it, a model of every transaction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from machine_adapters import EngineAdapter, Operation

from holdfast.engine.contract import Context, Engine, View
from holdfast.engine.history import Position, Record, origin
from holdfast.engine.seams import REAL, Seams

ORIGIN = origin(b"a store's own id")


class Harness:
    """An engine in `directory`, the records it was given, and the model after each (`models[txid]`)."""

    def __init__(self, adapter: EngineAdapter, directory: Path, seams: Seams = REAL) -> None:
        self.adapter = adapter
        self.directory = directory
        self.context = Context(seams, adapter.options)
        self.records: list[Record] = []
        self.models: list[Any] = [adapter.new_model()]
        directory.mkdir(exist_ok=True)
        adapter.engine.create(directory, ORIGIN, self.context)
        self.engine: Engine[Any, Any] = adapter.engine.open(directory, self.context)

    @property
    def end(self) -> Position:
        return self.records[-1].position if self.records else ORIGIN

    def position(self, txid: int) -> Position:
        return self.records[txid - 1].position if txid else ORIGIN

    def commit(self, operations: list[Operation]) -> bool:
        """Run one transaction; whether it wrote anything."""
        model = self.models[-1].copy()
        tx = self.engine.begin()
        self.adapter.run(tx, model, operations)
        payload = tx.payload()
        assert payload == tx.payload()
        if not payload:
            assert self.adapter.expected(model) == self.adapter.expected(self.models[-1])
        tx.close()
        if payload:
            txid = len(self.records) + 1
            record = Record.make(self.end.chain, txid, 0, txid, self.engine.payload_version, payload)
            self.records.append(record)
            self.models.append(model)
            self.engine.apply([record])
        return bool(payload)

    def roll_back(self, operations: list[Operation]) -> None:
        tx = self.engine.begin()
        self.adapter.run(tx, self.models[-1].copy(), operations)
        tx.close()

    def checkpoint(self, upto: int | None = None) -> None:
        """Up to the end, or at least to `upto`."""
        wanted = self.end if upto is None else self.position(upto)
        reached = self.engine.checkpoint(wanted)
        assert reached == self.engine.position == self.position(reached.txid)
        assert wanted.txid <= reached.txid

    def reopen(self) -> None:
        """Close without a checkpoint, open and recover."""
        self.engine.close()
        self.engine = self.recovered(self.directory)

    def recovered(self, directory: Path, *, adopt: Position | None = None, upto: int | None = None,
                  read_only: bool = False) -> Engine[Any, Any]:
        """Open what is in `directory` and apply the records from its position on, in two batches."""
        engine = self.adapter.engine.open(directory, self.context, adopt=adopt, read_only=read_only)
        assert adopt is None or engine.position == adopt
        assert engine.position == self.position(engine.position.txid)
        missing = self.records[engine.position.txid : upto]
        for batch in (missing[: len(missing) // 2], missing[len(missing) // 2 :]):
            engine.apply(batch)
        return engine

    def compare(self, view: View) -> None:
        """A view with the model at its txid."""
        assert self.adapter.content(view) == self.adapter.expected(self.models[view.txid])
        assert list(view.check()) == []

    def compare_state(self, engine: Engine[Any, Any] | None = None, txid: int | None = None) -> None:
        """What an engine (this one) shows now with the model at `txid` (the last)."""
        with (engine or self.engine).view() as view:
            assert view.txid == (len(self.records) if txid is None else txid)
            self.compare(view)
