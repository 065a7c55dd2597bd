"""Bytes that nobody can guess."""

from __future__ import annotations

import os


class Randomness:
    """Where ids and tokens come from."""

    def token(self, length: int) -> bytes:
        """`length` random bytes."""
        return os.urandom(length)
