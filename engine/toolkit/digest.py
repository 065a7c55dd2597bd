"""A digest of items that does not depend on their order."""

from __future__ import annotations

from collections.abc import Iterable

import msgpack
from xxhash import xxh3_128_digest, xxh3_128_intdigest


def unordered_digest(items: Iterable[bytes], *marks: int) -> bytes:
    """16 bytes over a multiset of encoded items, in any order, and over `marks`, in their order. O(items).

    Hashes are added, not xor-ed, so that two equal items do not cancel out.
    """
    total = count = 0
    for item in items:
        total += xxh3_128_intdigest(item)
        count += 1
    return xxh3_128_digest(msgpack.packb([(total % (1 << 128)).to_bytes(16, "little"), count, *marks]))
