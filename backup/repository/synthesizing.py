"""A synthetic image: the state at a point, made of the last image and archived log, without the source.

The state is restored into a scratch place, and checked. Then an image is taken of it as of any source. So it is a
session of the catalog like others, it stores only what differs from the image that it was made of, and it is whole by
itself. It is of the same branch, since nothing goes on from the scratch place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...engine.contract.image import Image as EngineImage
from ...engine.env.system import system_errors
from ...engine.errors import InvalidInput, NotFound
from ...engine.model.positions import History, Position
from ...engine.model.records import Record
from ...engine.source.interface import Confirmation, ContentDigest, Grant, SlotState, Source, SourceInfo
from ..target.scratch import check
from .plan import complete_until
from .restore_run import Restoring, Rolling, scratch_place
from .state import Image, Synthetic

Take = Callable[[Source, SourceInfo, Synthetic], Image]
"""Takes the image of a source."""


@dataclass(slots=True)
class RolledSource(Source):
    """A state that was restored to a point, as the source of an image. Nobody changes it. The log after the image has
    at most records of the kit, which an engine never gets."""

    at: Rolling
    history: History
    digest: bytes
    complete_until_us: int
    instance: str
    place: Path
    _image: EngineImage | None = field(default=None, init=False)

    def info(self) -> SourceInfo:
        end, engine = self.at.rolled.position, self.at.opened
        return SourceInfo(instance=self.instance, history=self.history, engine=engine.name,
                          state_format=engine.state_format, payload_version=engine.payload_version, durable=end,
                          readable=end, published=end, log_base=self.at.log.base,
                          complete_until_us=self.complete_until_us, path=str(self.place))

    def chain_at(self, txid: int) -> bytes:
        return self.at.log.chain_at(txid)

    def lease(self, owner: str, *, image: bool, after: Position | None = None, ttl: float = 60.0) -> Grant:
        if not image or self._image is not None:
            raise InvalidInput("a restored state gives one image", hint="ask for its image once, and release it")
        self._image = made = self.at.opened.image()
        return Grant(id=self.instance, instance=self.instance, ttl=ttl, position=made.position,
                     image_id=self.instance, files=tuple(made.files), time_us=self.at.log.time_of(made.position.txid))

    def renew(self, lease_id: str) -> None:
        """It holds as long as the source does."""

    def release(self, lease_id: str) -> None:
        image, self._image = self._image, None
        if image is not None:
            image.close()

    def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        assert self._image is not None
        return self._image.read(name, offset, length)

    def confirm(self, lease_id: str) -> Confirmation:
        assert self._image is not None
        return Confirmation(consistent_from=self._image.position, published=self.at.rolled.position,
                            complete_until_us=self.complete_until_us)

    def content_digest(self, lease_id: str) -> ContentDigest:
        return ContentDigest(position=self.at.rolled.position, digest=self.digest)

    def read_log(self, lease_id: str, after: Position, upto: int) -> Iterator[Record]:
        return self.at.log.cursor(after).read(upto)

    def read_attachment(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        raise NotFound(f"no record after the image names {name[:100]!r}", hint="the state has what it named")

    def register(self, slot_id: str, name: str, position: Position) -> None:
        """All its log stays as long as it does."""

    def slots(self) -> list[SlotState]:
        return []

    def drop(self, slot_id: str) -> None:
        raise NotFound("a restored state has no slots", hint="ask the store itself")

    def close(self) -> None:
        self.release(self.instance)


def synthesize(restoring: Restoring, take: Take, scratch: Path | None) -> Image:
    """See `Repository.synthesize`."""
    env, point = restoring.env, restoring.point
    with (system_errors("cannot make an image in the repository"), scratch_place(scratch, "synthesis", env) as place,
          restoring.rolled(place, place / "state", env) as at):
        txid = at.rolled.position.txid
        check(at.opened, f"the restored state of transaction {txid}")
        with at.opened.view() as view:
            digest = view.digest()
        history = restoring.archive.state.branches[point.branch].history
        with RolledSource(at, history, digest, complete_until(point, txid, at.time_us or 0),
                          env.randomness.token(8).hex(), place) as source:
            return take(source, source.info(), Synthetic(point.reach.image.session, digest))
