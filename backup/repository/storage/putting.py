"""Calls that are repeated until the storage answers: those that may be repeated as they are, a put whose name only its
caller uses, and one whose name others may take.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from ....engine.env import Env
from ..errors import ObjectExists, ObjectMissing, StorageUnavailable
from .interface import ObjectStore

logger = logging.getLogger("holdfast.repository")

TRIES = 5
"""How often a call is made before its caller is told that the storage is not available."""

PAUSE_S = 0.5
"""Seconds before the second try. Each pause after that is twice as long as the one before it."""

T = TypeVar("T")


def repeated(call: Callable[[], T], env: Env) -> T:
    """What `call` returns, which is called again after `StorageUnavailable`. With all `TRIES` this takes 7.5 seconds
    beside the calls. The call must do no harm if an earlier one was carried out after all.

    Raises:
        StorageUnavailable: the last try, too, had no answer.
        Others: as `call`, at once.
    """
    pause = PAUSE_S
    for left in reversed(range(TRIES)):
        try:
            return call()
        except StorageUnavailable as error:
            if not left:
                raise StorageUnavailable(f"{error.message} (tried {TRIES} times)", hint=error.hint) from error
            logger.info("it is tried again: %s", error.message)
            env.clock.sleep(pause)
            pause *= 2
    raise AssertionError("the last try returns or raises")


def put_own(store: ObjectStore, name: str, data: bytes, env: Env) -> None:
    """Put an object whose name only the caller uses, so that finding it there with this content is success. If the
    answer is lost, put it again: only a put says whether what is there is durable.

    Raises:
        ObjectExists: the name has other content.
        StorageUnavailable: see `repeated`. The call can be repeated.
        Others: as `ObjectStore.put` and `get`.
    """
    repeated(lambda: _put_or_compare(store, name, data), env)


def _put_or_compare(store: ObjectStore, name: str, data: bytes) -> None:
    try:
        store.put(name, data)
    except ObjectExists as error:
        try:
            found = store.get(name)
        except ObjectMissing as missing:
            raise StorageUnavailable(f"{store.url}/{name} was there for a put, and not for a get") from missing
        if found != data:
            raise ObjectExists(f"{store.url}/{name} is there already, with other content",
                               hint="see who else puts objects into this repository's folders") from error


def put_contested(store: ObjectStore, name: str, data: bytes, is_ours: Callable[[], bool], env: Env) -> bool:
    """Put an object whose name others may take. Whether it is there, and the caller's: `is_ours` looks at what is
    there, also if the answer to the last try was lost.

    Raises:
        StorageUnavailable: whether it was put is not known.
        Others: as `ObjectStore.put` and `is_ours`.
    """
    def put() -> bool:
        try:
            store.put(name, data)
        except ObjectExists:
            return is_ours()
        return True

    try:
        return repeated(put, env)
    except StorageUnavailable:
        try:
            return is_ours()
        except ObjectMissing:
            pass
        raise
