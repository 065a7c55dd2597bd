"""What can be known before a long run: whether the storage has room, and whether its clock and this machine's agree."""

from __future__ import annotations

import logging

from ....engine.env import Env
from ....engine.errors import DiskFull
from .interface import ObjectStore

logger = logging.getLogger("holdfast.repository")

MOST_SKEW_US = 3600 * 1_000_000
"""By how much the two clocks may differ. The time of an image that is made beyond that is not certain: see `Keep`."""


def check_room(store: ObjectStore, needed: int) -> None:
    """Raise `DiskFull` if it is known that the storage has no room for `needed` bytes."""
    room = store.room()
    if room is not None and room < needed:
        raise DiskFull(f"{needed:,} bytes are needed in {store.url}, and its file system has {room:,} left")


def tell_room(store: ObjectStore, most: int) -> None:
    """Warn if `most` bytes, which may become fewer when they are compressed, may not fit."""
    room = store.room()
    if room is not None and room < most:
        logger.warning("%s has room for %s bytes, and the image has %s: it fits only if it is compressed that much",
                       store.url, f"{room:,}", f"{most:,}")


def tell_clock(store: ObjectStore, name: str, begun_us: int, env: Env) -> None:
    """Warn if the storage's clock is far from this machine's. `name`: an object that was put after `begun_us`. A list.
    """
    ended_us = env.clock.now_us()
    for listed in store.list(name):
        if listed.name == name:
            tell_skew(store, listed.modified_us - min(max(listed.modified_us, begun_us), ended_us))


def tell_skew(store: ObjectStore, ahead_us: int) -> None:
    """Warn if the storage's clock is far ahead of this machine's, or behind it."""
    if abs(ahead_us) > MOST_SKEW_US:
        logger.warning("the clock of %s is %s s %s this machine's: find out which one is wrong. Images that are made "
                       "meanwhile are kept by every expiry", store.url, f"{abs(ahead_us) // 1_000_000:,}",
                       "ahead of" if ahead_us > 0 else "behind")
