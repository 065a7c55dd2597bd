"""The frames of members' streams: there and back, and what a stranger may send."""

from __future__ import annotations

import struct
from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer_rig import START, records
from xxhash import xxh3_64_intdigest

from holdfast.engine.errors import Diverged, HoldfastError, InvalidInput, NotFound, SourceRefused
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Attachment, Record
from holdfast.engine.source.http.wire import Garbled
from holdfast.replay.ha.errors import PeerUnavailable, ProtocolMismatch
from holdfast.replay.ha.peer import wire
from holdfast.replay.ha.peer.wire import Frame, FrameReader


def raw(body: object) -> bytes:
    data = msgpack.packb(body)
    return struct.pack("<IQ", len(data), xxh3_64_intdigest(data)) + bytes(data)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.integers(1, 50))
def test_frames_come_back_however_they_are_cut(payloads: list[bytes], piece: int) -> None:
    made, after = [], START
    for payload in payloads:
        made += records(1, payload, after)
        after = made[-1].position
    data = wire.frame(wire.WELCOME, {"version": 1}) + wire.records_frame(made) + wire.frame(wire.END, "bye")
    reader = FrameReader(START)
    frames = [f for at in range(0, len(data), piece) for f in reader.feed(data[at : at + piece])]
    assert frames[0] == Frame(wire.WELCOME, {"version": 1})
    assert [(r.header, r.payload, r.position) for r in frames[1].body] == [
        (r.header, r.payload, r.position) for r in made]
    assert frames[2] == Frame(wire.END, "bye")
    assert reader.position == made[-1].position


@given(st.data())
def test_no_changed_byte_is_believed(data: st.DataObject) -> None:
    sent = bytearray(wire.records_frame(records(3)) + wire.frame(wire.HEARTBEAT, {"epoch": 3}))
    at = data.draw(st.integers(0, len(sent) - 1))
    sent[at] ^= data.draw(st.integers(1, 255))
    reader, got = FrameReader(START), []
    try:
        got = list(reader.feed(bytes(sent)))
    except HoldfastError:
        return
    assert len(got) < 2  # a length that grew: the rest is awaited, and a stream that ends there is cut off


@given(st.binary(max_size=200))
def test_noise_raises_nothing_but_garbled(noise: bytes) -> None:
    framed = struct.pack("<IQ", len(noise), xxh3_64_intdigest(noise)) + noise
    for data in (noise, framed):
        with suppress(Garbled):
            list(FrameReader(START).feed(data))


def _record(header: object, payload: bytes = b"") -> bytes:
    return raw([wire.RECORDS, [[msgpack.packb(header), payload]], bytes(16)])


@pytest.mark.parametrize("data", [
    raw([9, {}]), raw([wire.HEARTBEAT, []]), raw([wire.HEARTBEAT, {1: 2}]), raw([wire.END, 5]), raw({}), raw([]),
    raw(["1", {}]), raw([wire.RECORDS, [], bytes(16)]), raw([wire.RECORDS, [[b"", b""]], bytes(16)]),
    raw([wire.RECORDS, [["text", b""]], bytes(16)]), raw([wire.HEARTBEAT, {"long": "x" * wire.MAX_SMALL}]),
    _record((2, 1, 5, 1, 0, None)), _record((1, -1, 5, 1, 0, None)), _record((1, 1, 5, 1, 3, None)),
    _record((1, 1, 1 << 62, 1, 0, None)), _record((1, 1, 5, 1, 0, ("../x", 1, bytes(16)))),
    struct.pack("<IQ", 1 << 31, 0), struct.pack("<IQ", 0, 0),
])
def test_a_frame_in_another_form_is_garbled(data: bytes) -> None:
    with pytest.raises(Garbled):
        list(FrameReader(START, 1000).feed(data))


def test_a_record_that_is_too_large_is_refused() -> None:
    data = wire.records_frame(records(1, bytes(1001)))
    assert list(FrameReader(START, 1001).feed(data))
    with pytest.raises(Garbled, match="at most 1,000"):
        list(FrameReader(START, 1000).feed(data))


def test_records_of_another_history_are_diverged() -> None:
    with pytest.raises(Diverged, match="do not continue"):
        list(FrameReader(Position(0, b"another chain...")).feed(wire.records_frame(records(2))))


def test_an_attachment_comes_along() -> None:
    named = Attachment("0a" * 16 + ".att", 5, bytes(16))
    record = Record.make(START.chain, 1, 1, 7, 1, b"", named)
    [frame] = FrameReader(START).feed(wire.records_frame([record]))
    assert frame.body[0].attachment == named


def test_a_stream_without_records_takes_none() -> None:
    with pytest.raises(Garbled):
        list(FrameReader(None).feed(wire.records_frame(records(1))))


@pytest.mark.parametrize("error", [NotFound("it is not there", hint="look elsewhere"),
                                   PeerUnavailable("no answer", hint="wait"), ProtocolMismatch("old", hint="new")])
def test_errors_keep_their_class(error: HoldfastError) -> None:
    made = wire.failure_from_wire(wire.failure(error)[1])
    assert (type(made), made.message, made.hint) == (type(error), error.message, error.hint)


def test_an_unknown_error_is_a_refusal() -> None:
    assert type(wire.failure_from_wire({"error": "Strange", "message": "x"})) is SourceRefused
    assert type(wire.failure_from_wire([1])) is SourceRefused


def test_versions_one_apart_agree_and_two_apart_do_not() -> None:
    assert wire.agree(4, 3, mine=3, my_minimum=2) == wire.agree(3, 2, mine=4, my_minimum=3) == 3
    for theirs, mine in (((5, 4), (3, 2)), ((3, 2), (5, 4))):
        with pytest.raises(ProtocolMismatch, match=f"{theirs[1]} to {theirs[0]}.*{mine[1]} to {mine[0]}"):
            wire.agree(*theirs, *mine)


@pytest.mark.parametrize("text", ["", "1", "a b", "1 2 3", "123456 1", "-1 1", "\u0661 1"])
def test_versions_in_another_form_are_a_mismatch(text: str) -> None:
    with pytest.raises(ProtocolMismatch):
        wire.versions_from_wire(text)


def test_a_hello_is_bounded() -> None:
    hello = {"name": "b", "chain": bytes(16)}
    assert wire.hello_from_wire(wire.hello_to_wire(hello)) == hello
    with pytest.raises(InvalidInput):
        wire.hello_to_wire({"name": "x" * 5000})
    for text in ("", "%", "AAAA", "\udce9"):
        with pytest.raises(Garbled):
            wire.hello_from_wire(text)
