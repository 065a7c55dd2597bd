"""Objects in memory: the plainest storage, which broken ones are made of."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.backup.repository.errors import ObjectExists, ObjectMissing
from holdfast.backup.repository.storage.interface import (
    ObjectStore,
    StoredObject,
    check_name,
    check_object,
    check_prefix,
    check_range,
    too_short,
)
from holdfast.engine.env import REAL


class MemoryObjectStore(ObjectStore):
    """Objects in `objects`, which several may share."""

    url = "memory://"

    def __init__(self, objects: dict[str, tuple[bytes, int]]) -> None:
        self.objects = objects

    def put(self, name: str, data: bytes) -> None:
        check_object(name, data)
        if self.objects.setdefault(name, mine := (data, REAL.clock.now_us())) is not mine:
            raise ObjectExists(f"{name} is there already")

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(name, offset, length)
        if name not in self.objects:
            raise ObjectMissing(f"{name} is not there")
        data = self.objects[name][0]
        end = len(data) if length is None else offset + length
        if max(offset, end) > len(data):
            raise too_short(self.url, name, len(data), offset, length)
        return data[offset:end]

    def list(self, prefix: str) -> Iterator[StoredObject]:
        check_prefix(prefix)
        for name, (data, put_us) in sorted(self.objects.items()):
            if name.startswith(prefix):
                yield StoredObject(name, len(data), put_us)

    def delete(self, name: str) -> None:
        check_name(name)
        self.objects.pop(name, None)
