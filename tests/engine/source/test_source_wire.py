"""What crosses the network: the record stream, errors and JSON forms, against whatever bytes may come."""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.engine import errors
from holdfast.engine.contract.image import ImageFile
from holdfast.engine.errors import Damaged, HoldfastError, LeaseExpired, LogPruned, SourceRefused, SourceUnavailable
from holdfast.engine.model.positions import Branch, History, Position, origin
from holdfast.engine.model.records import Attachment, Record
from holdfast.engine.source.http import wire
from holdfast.engine.source.interface import Confirmation, ContentDigest, Grant, MemberInfo, SourceInfo

START = origin(bytes(16))


def records(payloads: list[bytes], start: Position = START) -> list[Record]:
    made: list[Record] = []
    for number, payload in enumerate(payloads):
        attachment = Attachment(f"{number:032x}.att", 5, bytes(16)) if number % 3 == 2 else None
        before = made[-1].position if made else start
        made.append(Record.make(before.chain, before.txid + 1, 0, number, 1, payload, attachment))
    return made


def stream(made: list[Record], start: Position = START) -> bytes:
    frames = [frame for r in made for frame in (wire.record_frame(r), wire.HEARTBEAT)]
    return b"".join([*frames, wire.end_frame(made[-1].position if made else start)])


def feed(reader: wire.RecordReader, data: bytes, cuts: list[int]) -> list[Record]:
    places = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [r for a, b in pairwise(places) for r in reader.feed(data[a:b])]


@given(st.lists(st.binary(max_size=200), max_size=8), st.lists(st.integers(0, 5000), max_size=8))
def test_a_stream_comes_back_however_it_is_cut_into_pieces(payloads: list[bytes], cuts: list[int]) -> None:
    made, reader = records(payloads), wire.RecordReader(START)
    got = feed(reader, stream(made), cuts)
    assert [(r.txid, r.payload, r.header, r.chain, r.attachment) for r in got] == [
        (r.txid, r.payload, r.header, r.chain, r.attachment) for r in made]
    assert reader.ended


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.integers(0), st.integers(1, 255))
def test_a_changed_byte_never_reaches_anybody(payloads: list[bytes], at: int, change: int) -> None:
    made, reader = records(payloads), wire.RecordReader(START)
    data = bytearray(stream(made))
    data[at % len(data)] ^= change
    got: list[Record] = []
    with suppress(Damaged, SourceRefused):
        got.extend(reader.feed(bytes(data)))  # keeps what came before an error
        assert not reader.ended or len(got) == len(made)
    assert [(r.header, r.payload, r.chain) for r in got] == [(r.header, r.payload, r.chain) for r in made[: len(got)]]


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_bytes_that_are_no_stream_raise_what_they_should(data: bytes, cuts: list[int]) -> None:
    reader = wire.RecordReader(START)
    with suppress(Damaged, SourceRefused):
        assert feed(reader, data, cuts) == []
    assert not reader.ended


@given(st.binary(max_size=60), st.binary(max_size=40))
def test_a_frame_with_a_header_that_is_none(header: bytes, payload: bytes) -> None:
    bad = Record(1, 0, 0, 1, payload, None, header, START.chain)
    with pytest.raises(wire.Garbled):
        list(wire.RecordReader(START).feed(wire.record_frame(bad)))


def test_a_cut_stream_has_not_ended() -> None:
    made = records([b"one", b"two"])
    data = stream(made)
    for length in range(len(data)):
        reader = wire.RecordReader(START)
        assert list(reader.feed(data[:length]))[:1] in ([], [made[0]]) or reader.position.txid <= 2
        assert not reader.ended


def test_gaps_other_histories_and_bytes_after_the_end() -> None:
    made = records([b"one", b"two", b"three"])
    gap = Record.make(made[0].chain, 3, 0, 0, 1, b"three")  # chained to 1, and numbered 3
    with pytest.raises(LogPruned):
        list(wire.RecordReader(START).feed(wire.record_frame(made[0]) + wire.record_frame(gap)))
    with pytest.raises(wire.Garbled, match="does not continue"):
        list(wire.RecordReader(START).feed(wire.record_frame(made[1])))
    with pytest.raises(wire.Garbled, match="ends elsewhere"):
        list(wire.RecordReader(START).feed(wire.end_frame(made[1].position)))
    with pytest.raises(wire.Garbled, match="after its end"):
        list(wire.RecordReader(START).feed(wire.end_frame(START) + wire.HEARTBEAT))
    with pytest.raises(wire.Garbled, match="kind 1"):
        list(wire.RecordReader(START).feed(wire._FRAME.pack(1, 20, wire.MAX_PAYLOAD + 1)))
    with pytest.raises(wire.Garbled, match="attachment"):
        bad = Record.make(START.chain, 1, 0, 0, 1, b"", Attachment("../../x", 1, bytes(16)))
        list(wire.RecordReader(START).feed(wire.record_frame(bad)))


def test_an_error_in_the_middle_of_a_stream_arrives_as_itself() -> None:
    [made] = records([b"one"])
    got: list[Record] = []
    with pytest.raises(LeaseExpired, match="too slow") as caught:
        data = wire.record_frame(made) + wire.error_frame(LeaseExpired("too slow"))
        got.extend(wire.RecordReader(START).feed(data))
    assert got[0].payload == b"one"
    assert caught.value.hint == LeaseExpired.hint


@pytest.mark.parametrize("cls", [wire._CLASSES[name] for name in sorted(wire._CLASSES)])
def test_errors_cross_as_themselves(cls: type[HoldfastError]) -> None:
    status, body = wire.error_to_wire(cls("what happened", hint="do this"))
    back = wire.error_from_wire(body)
    assert (type(back), back.message, back.hint) == (cls, "what happened", "do this")
    assert 400 <= status < 600


def test_other_errors_cross_as_what_the_other_end_can_use() -> None:
    def crossed(error: BaseException) -> HoldfastError:
        return wire.error_from_wire(wire.error_to_wire(error)[1])

    assert type(crossed(errors.StoreClosed("closed"))) is SourceUnavailable
    assert type(crossed(errors.StorePoisoned("x"))) is SourceRefused
    for limit in (OSError(errno.EMFILE, "Too many open files"), MemoryError(), RuntimeError("can't start new thread"),
                  errors.LimitReached("x")):  # it is retried: nothing is wrong with anything
        assert type(crossed(limit)) is SourceUnavailable
    assert "Input/output" in crossed(OSError(errno.EIO, "Input/output error", "/data")).message
    assert type(crossed(wire.Garbled("x"))) is Damaged
    secret = crossed(RuntimeError("/home/ada/secret"))
    assert type(secret) is SourceRefused
    assert "ada" not in str(secret)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["error", "message", "hint", "id", "files", "txid"]), x), max_leaves=10))
def test_anything_may_come_as_an_answer(data: Any) -> None:
    assert isinstance(wire.error_from_wire(data), HoldfastError)
    for make in (wire.info_from_wire, wire.grant_from_wire, wire.confirmation_from_wire, wire.position_from_wire):
        with pytest.raises(SourceRefused):
            wire.parse("an answer", make, data)


def test_forms_come_back() -> None:
    history = History(bytes(16), (Branch(b"\1" * 16, START), Branch(b"\2" * 16, Position(7, b"\3" * 16))))
    info = SourceInfo(instance="ab" * 16, history=history, engine="memory", state_format=1, payload_version=1,
                      durable=START, published=START, readable=START, log_base=START, complete_until_us=5,
                      path="/somewhere")
    assert wire.info_from_wire(wire.info_to_wire(info)) == info
    member = replace(info, member=MemberInfo(name="a", role="follower", healthy=True))
    assert wire.info_from_wire(wire.info_to_wire(member)) == member
    grant = Grant(id="cd" * 16, instance="ab" * 16, ttl=5.0, position=START, image_id="cd" * 16, moving=True,
                  files=(ImageFile("a/b.c", 7), ImageFile("d", 0)), time_us=9)
    assert wire.grant_from_wire(wire.grant_to_wire(grant)) == grant
    confirmation = Confirmation(consistent_from=START, published=Position(1, bytes(16)), complete_until_us=3)
    assert wire.confirmation_from_wire(wire.confirmation_to_wire(confirmation)) == confirmation
    content = ContentDigest(position=Position(1, bytes(16)), digest=b"\5" * 16)
    assert wire.content_from_wire(wire.content_to_wire(content)) == content
    with pytest.raises(SourceRefused):
        wire.parse("an answer", wire.content_from_wire, {**wire.content_to_wire(content), "digest": "05"})


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", ".", "a/.", "a\\..\\b", "a\0b",
                                  "x" * 1001])
def test_a_source_cannot_name_files_elsewhere(name: str) -> None:
    grant = Grant(id="cd" * 16, instance="ab" * 16, ttl=5.0, position=START, files=(ImageFile(name, 1),))
    with pytest.raises(SourceRefused):
        wire.parse("a lease", wire.grant_from_wire, wire.grant_to_wire(grant))


@pytest.mark.parametrize(("form", "field", "value"), [
    ("grant", "time_us", 2**70), ("grant", "time_us", 2**60), ("grant", "time_us", -5), ("grant", "time_us", "soon"),
    ("grant", "ttl", 10**400), ("grant", "ttl", "nan"), ("grant", "position", {"txid": 2**70, "chain": "00" * 16}),
    ("grant", "files", [{"name": "\ud800", "size": 3}]), ("grant", "files", [{"name": "a", "size": 2**70}]),
    ("grant", "files", [{"name": "a", "size": 3}, {"name": "a", "size": 3}]),
    ("info", "state_format", 2**70), ("info", "payload_version", -1),
    ("info", "engine", "\ud800"), ("info", "path", "\ud800"),
    ("info", "member", {"name": "\ud800", "role": "primary", "healthy": True}), ("info", "member", []),
    ("info", "member", {"name": "a", "healthy": True}), ("info", "complete_until_us", 10**30),
    ("confirmation", "complete_until_us", 2**60),
    ("confirmation", "complete_until_us", 1.5)])
def test_a_source_cannot_send_what_no_file_or_calendar_holds(form: str, field: str, value: Any) -> None:
    """Such values went into a manifest, or stopped half-way there with a traceback; and whoever looked at the backup
    later got the traceback then."""
    sent: dict[str, Any] = {
        "grant": wire.grant_to_wire(Grant(id="cd" * 16, instance="ab" * 16, ttl=5.0, position=START)),
        "info": wire.info_to_wire(SourceInfo(
            instance="ab" * 16, history=History(bytes(16), (Branch(b"\1" * 16, START),)), engine="memory",
            state_format=1, payload_version=1, durable=START, published=START, readable=START,
            log_base=START, complete_until_us=5, path="/somewhere")),
        "confirmation": wire.confirmation_to_wire(
            Confirmation(consistent_from=START, published=START, complete_until_us=3)),
    }[form]
    make = {"grant": wire.grant_from_wire, "info": wire.info_from_wire,
            "confirmation": wire.confirmation_from_wire}[form]
    wire.parse("an answer", make, sent)
    with pytest.raises(SourceRefused):
        wire.parse("an answer", make, {**sent, field: value})


@pytest.mark.parametrize("numbers", [(1.0, 0, 0, 1), (1, "0", 0, 1), (1, 0, 2**62, 1), (1, 0, -5, 1), (1, 0, None, 1)])
def test_a_record_has_numbers(numbers: tuple[Any, Any, Any, Any]) -> None:
    record = Record.make(START.chain, *numbers, b"payload")
    with pytest.raises(wire.Garbled, match="numbers"):
        list(wire.RecordReader(START).feed(wire.record_frame(record)))


def test_a_record_is_not_kept_when_it_is_handed_on() -> None:
    """A record may have a gigabyte, and who takes it makes copies enough."""
    [made] = records([bytes(1000)])
    reader = wire.RecordReader(START)
    assert [len(reader._rest) for _ in reader.feed(wire.record_frame(made))] == [0]


@pytest.mark.parametrize("attachment", [
    ("../../x", 1, bytes(16)), (7, 1, bytes(16)), ("0" * 32 + ".att", "x", bytes(16)),
    ("0" * 32 + ".att", 1.5, bytes(16)), ("0" * 32 + ".att", -1, bytes(16)), ("0" * 32 + ".att", 1 << 63, bytes(16)),
    ("0" * 32 + ".att", None, bytes(16)), ("0" * 32 + ".att", 1, bytes(15)), ("0" * 32 + ".att", 1, "text"),
], ids=repr)
def test_an_attachment_that_cannot_be_one_is_garbled(attachment: Any) -> None:
    """Of a source that lies: it ended in a traceback of ours."""
    bad = Record.make(START.chain, 1, 0, 0, 1, b"", Attachment(*attachment))
    with pytest.raises(wire.Garbled):
        list(wire.RecordReader(START).feed(wire.record_frame(bad)))


def test_an_error_that_is_nested_without_end_is_garbled() -> None:
    body = b"[" * 60_000
    frame = wire._FRAME.pack(wire._ERROR, 0, len(body)) + body
    with pytest.raises(wire.Garbled):
        list(wire.RecordReader(START).feed(frame))
