"""Whether storage keeps the promises that a repository rests on, tried before anything is stored; and whether the
credentials allow more than a repository needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from ....engine.env import Env
from ....engine.errors import AccessDenied, Damaged, HoldfastError
from ..errors import ObjectExists, ObjectMissing, StorageUnavailable, StorageUnsuitable
from .interface import ObjectStore, StoredObject
from .putting import put_own

FOLDER = "probes"
"""Where probes are put, under names that nobody else uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What a probe found.

    Attributes:
        name: of the probe's object.
        replaced: whether it could be put again over the first one, without a condition. None: it is not known.
        removed: whether it could be removed again. If not, it stays. None: it is not known.
        ahead_us: how far the storage's clock is ahead of this machine's; negative if it is behind. Microseconds. Right
            to a second or two and the length of a put.
    """

    name: str
    replaced: bool | None
    removed: bool | None
    ahead_us: int


def probe(store: ObjectStore, env: Env) -> Probed:
    """Try storage with one small object, in eight requests or so.

    Raises:
        StorageUnsuitable: a promise was broken; the message says which one.
        StorageDenied: these credentials may not put, get or list.
        Others: as the methods of `ObjectStore`.
    """
    name = f"{FOLDER}/{env.randomness.token(16).hex()}"
    first, second = env.randomness.token(64), env.randomness.token(64)
    begun_us = env.clock.now_us()
    put_own(store, name, first, env)
    ended_us = env.clock.now_us()
    try:
        listed = _kept(store, name, first, second)
    except BaseException:
        with contextlib.suppress(HoldfastError):  # what was found is told, not this
            store.delete(name)
        raise
    replaced = _tried(lambda: store.replaceable(name, second))
    return Probed(name=name, replaced=replaced, removed=_tried(lambda: _removed(store, name)),
                  ahead_us=listed.modified_us - (begun_us + ended_us) // 2)


def _tried(call: Callable[[], bool | None]) -> bool | None:
    """Whether something is allowed that a backup does not need, so that it may as well fail."""
    try:
        return call()
    except AccessDenied:
        return False
    except StorageUnavailable:
        return None


def _removed(store: ObjectStore, name: str) -> bool:
    store.delete(name)
    if _is_there(store, name):
        raise StorageUnsuitable(f"{store.url} still has an object that was removed")
    return True


def _kept(store: ObjectStore, name: str, first: bytes, second: bytes) -> StoredObject:
    """The object with the content `first`, which was just put, as it is listed. Raises `StorageUnsuitable`."""
    _refuses(store, name, second)
    try:
        if store.get(name) != first:
            raise StorageUnsuitable(f"{store.url} changed an object when a second put of its name was refused")
        if store.get(name, 16, 32) != first[16:48]:
            raise StorageUnsuitable(f"{store.url} ignores ranges, and sends other bytes than those asked for")
    except (ObjectMissing, Damaged) as error:
        raise StorageUnsuitable(f"{store.url} does not give back what was just put: {error.message}",
                                hint="use storage that is consistent after a put") from error
    for listed in store.list(name):
        if listed.name == name and listed.size == len(first):
            return listed
    raise StorageUnsuitable(f"{store.url} does not list an object that was just put",
                            hint="use storage whose lists are consistent")


def _refuses(store: ObjectStore, name: str, data: bytes) -> None:
    try:
        store.put(name, data)
    except ObjectExists:
        return
    raise StorageUnsuitable(f"{store.url} replaced an object: it ignores the condition If-None-Match, or whatever else "
                            "keeps a name from being taken twice",
                            hint="use storage, or a version of it, that has conditional writes; two writers would "
                                 "overwrite each other's log here")


def _is_there(store: ObjectStore, name: str) -> bool:
    try:
        store.get(name)
    except ObjectMissing:
        return False
    return True
