"""Bytes that nobody can guess."""

from __future__ import annotations

import secrets


class Randomness:
    """Where ids and tokens come from."""

    def token(self, length: int) -> bytes:
        """`length` random bytes."""
        return secrets.token_bytes(length)
