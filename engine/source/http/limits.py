"""The bounds of a server, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass

PIECE_BYTES = 256 << 10
"""While transactions commit, so much is sent at a time, with rests in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a server; times in seconds.

    Attributes:
        connections: open at once, and no more than a quarter of the descriptors that the process may have. One more
            takes the place of one that has not shown the token, if there is one, and is closed at once if not.
        streams: answers with bytes of images, attachments or log at once; each holds one chunk in memory, and has a
            thread of its own to read and send.
        patient: threads for images that are being made, and for confirmations; one for each lease there may be.
        threads: for all else.
        line_bytes, body_bytes: of a request.
        silent_seconds: from connecting to the first byte.
        handshake_seconds: for a TLS handshake.
        header_seconds: from connecting to the first whole request.
        body_seconds: for the body of a request.
        write_seconds: in which a client must take a MiB, or what is left of a chunk.
        idle_seconds: a connection may wait between requests.
        busy_seconds: a request waits for its turn to stream.
        heartbeat_seconds: between signs of life in a record stream that has nothing to send.
    """

    connections: int = 64
    streams: int = 6
    patient: int = 16
    threads: int = 4
    line_bytes: int = 8190
    body_bytes: int = 64 << 10
    silent_seconds: float = 5.0
    handshake_seconds: float = 5.0
    header_seconds: float = 10.0
    body_seconds: float = 10.0
    write_seconds: float = 60.0
    idle_seconds: float = 60.0
    busy_seconds: float = 20.0
    heartbeat_seconds: float = 5.0


@dataclass(slots=True)
class Counters:
    """Counts for the metrics, besides the store's own figures."""

    requests: int = 0
    refused: int = 0
    sent_bytes: int = 0
