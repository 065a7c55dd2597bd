"""One backup run: its source, target and policy, and what full, incremental and compaction have in common."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from typing import Any

from ...engine.env import Env
from ...engine.errors import Damaged, HoldfastError, SourceRestarted
from ...engine.source.interface import Grant, Source, SourceInfo
from ...engine.store.layout import Layout
from ...replay.files import Progress
from ...replay.roll import Fetched
from ..engines import AnyEngine, Options, compare_versions, engine_at_hand
from ..policy import Policy
from ..report import Bounds, Report
from ..retention import NONE, Older, gone, older_one
from .precheck import look
from .target import Target

logger = logging.getLogger("holdfast.backup")


@dataclass(slots=True)
class Job:
    """One run. `owner` names it to the source; `origin` names the source to people. `asked`: a full backup was asked
    for. `damaged`: the target was found damaged."""

    source: Source
    info: SourceInfo
    layout: Layout
    env: Env
    owner: str
    origin: str
    policy: Policy
    accept_branch: bytes | None
    cutoff_us: int
    engine: AnyEngine | None
    options: Options
    progress: Progress
    started_us: int
    started: float
    asked: bool = False
    damaged: bool = False
    notes: list[str] = field(default_factory=list)

    def at_hand(self, name: str) -> AnyEngine | None:
        """The engine, its versions compared with the source's before the first byte is copied. None if it is not
        installed; the report says so.

        Raises:
            UpgradeRequired, UnsupportedFormat, WrongEngine.
        """
        engine = engine_at_hand(name, self.engine)
        if engine is None:
            self.notes.append(f"the {name} engine is not installed here, so its versions were not compared")
        else:
            compare_versions(engine, self.info.state_format, (self.info.payload_version,), "the source")
        return engine

    def ask_again(self, grant: Grant) -> SourceInfo:
        """Where the source stands now. Raises `SourceRestarted` if it is not the instance that this run asked first and
        that granted the lease. By now another store may be served at the same address."""
        info = self.source.info()
        if not self.info.instance == grant.instance == info.instance:
            raise SourceRestarted(f"the source of store {self.info.history.store_id.hex()} has been restarted, or "
                                  "another one has taken its place")
        return info

    def register(self, target: Target) -> None:
        """Have the source keep its log for the next incremental. A failure is only noted: the backup is whole."""
        if not self.policy.register:
            return
        try:
            self.source.register(target.manifest.target_id.hex(), self.owner, target.manifest.noted_end)
        except HoldfastError as error:
            logger.warning("the source was not told to keep its log for %s: %s", self.layout.root, error)
            self.notes.append(f"the source was not told to keep its log for the next incremental: {error.message}")

    def release(self, lease_id: str) -> None:
        """Give a lease back. If that fails, the lease expires by itself."""
        with contextlib.suppress(HoldfastError):
            self.source.release(lease_id)

    def report(self, kind: str, target: Target, bounds: Bounds, branch: bytes, fetched: Fetched, *, from_txid: int,
               before: Bounds | None, **more: Any) -> Report:
        """What the run did. `bounds`: what the generation restores to. `before`: what the target restored to before the
        run. `more`: further fields of the report."""
        manifest, whole = target.manifest, target.whole(bounds)
        dropped = () if before is None else gone(before, whole)
        new_gap = before is not None and not set(whole.gaps) <= set(before.gaps)
        return Report(kind=kind, target=str(self.layout.root), target_id=manifest.target_id.hex(),
                      store_id=manifest.history.store_id.hex(), branch=branch.hex(), engine=manifest.engine,
                      from_txid=from_txid, to_txid=bounds.last, log_bytes=fetched.bytes, transactions=fetched.records,
                      started_us=self.started_us, ended_us=self.env.clock.now_us(),
                      seconds=self.env.clock.monotonic() - self.started, bounds=whole, dropped=dropped,
                      lost=(new_gap and not self.asked) or (bool(dropped) and (self.cutoff_us == NONE or self.damaged)),
                      notes=tuple(self.notes), **more)

    def look(self, target: Target, number: int) -> None:
        """Check a target as much as the policy says. Raises `Damaged`."""
        look(target, number=number, every=self.policy.check == "all", chunks=self.policy.limits.sampled_chunks)

    def stand(self, target: Target) -> tuple[Bounds, Older]:
        """What a backup restores to before a full one replaces it, and its generations, which will be older ones then.
        A damaged one is listed with its damage, and counts as restoring to nothing."""
        damage, manifest, generation = "", target.manifest, target.generation
        try:
            bounds = target.bounds()
            self.look(target, 1)
        except Damaged as error:
            damage, self.damaged = error.message, True
            bounds = Bounds(first=manifest.consistent_from.txid, last=manifest.noted_end.txid, first_time_us=None,
                            last_time_us=None, complete_until_us=manifest.runs[-1]["complete_until_us"])
            self.notes.append(f"{generation.name}, which was in force, is damaged: {damage}")
        return target.whole(bounds), (*manifest.older, older_one(generation, bounds, damage))
