"""The log against flipped bytes and holes: damage is named, a torn tail is cut, nothing passes for what it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from log_script import DIRECTORY, HISTORY, SMALL, START, begin, opened, payload

from holdfast.engine.env import Env
from holdfast.engine.errors import Damaged, HoldfastError, UnsupportedFormat
from holdfast.engine.model.positions import Position
from holdfast.engine.testing.disks.quiet import SeededRandomness, SetClock, quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.testing.disks.simfates import FATES, Fate
from holdfast.engine.wal.format import GROUP_HEADER
from holdfast.engine.wal.log import Log
from holdfast.engine.wal.segment import Segment


def three_segments(*, clean: bool) -> SimDisk:
    """Sealed segments and a last one that is sealed (`clean`) or as a killed process leaves it: two groups of one."""
    script = begin()
    script.append(payload(1, 300), b"two")
    script.append(payload(3, 90_000))
    script.append(payload(4, 50_000))
    script.append(payload(5, 40_000))
    script.append(payload(6, 50_000))
    script.append(b"seven", payload(8, 200))
    if clean:
        script.log.close()
    assert len(script.log.segments()) == 3
    return script.disk.crashed(Fate())


def paths(disk: SimDisk) -> list[Path]:
    return [DIRECTORY / name for name in disk.list(DIRECTORY) if name.endswith(".seg") and name[0].isdigit()]


def damaged(disk: SimDisk, path: Path, change: Callable[[bytearray], None]) -> SimDisk:
    other = disk.copy()
    change(other.inodes[other._walk(path)].data)
    return other


@dataclass
class Finding:
    """What a look at a damaged log gave: an error that names the file, or what it holds and said."""

    error: Damaged | UnsupportedFormat | None
    records: int = 0
    cut: bool = False


def look(disk: SimDisk, **kwargs: object) -> Finding:
    try:
        log = Log.open(DIRECTORY, options=SMALL, env=quiet_env(disk, seed=9), **kwargs)  # type: ignore[arg-type]
        count = sum(1 for _ in log.read(0))
        log.verify()
    except (Damaged, UnsupportedFormat) as error:
        return Finding(error)
    return Finding(None, count, log.recovery.cut_bytes > 0)


def places(disk: SimDisk, path: Path, random: Random) -> Iterator[int]:
    """Every byte that means something where there are few, and a sample of the payloads."""
    size = len(disk.read(path).rstrip(b"\0"))
    segment = Segment.load(disk, path)
    yield from range(segment.data_start + 2 * GROUP_HEADER.size)
    yield from sorted(random.sample(range(segment.data_start, size), 150))
    yield from range(size - 400, size)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_flipped_byte_is_found(number: int, clean: bool) -> None:
    """In a sealed segment every flip is an error, or hit only what the segment can be read without (its footer), and
    then all the records are there. In the last segment of a log that was not closed, it may also have hit the last
    group, which can't be told from a torn one: that is cut, and said to be."""
    disk = three_segments(clean=clean)
    path = paths(disk)[number]
    open_end = number == 2 and not clean
    found = 0
    for offset in places(disk, path, Random(number)):
        def flip(data: bytearray, offset: int = offset) -> None:
            data[offset] ^= 0x20

        finding = look(damaged(disk, path, flip))
        if finding.error is not None:
            found += 1
            assert isinstance(finding.error, UnsupportedFormat) or finding.error.path is not None
            assert path.name in str(finding.error) or paths(disk)[min(2, number + 1)].name in str(finding.error)
        elif open_end:
            assert finding.records == 8 or (finding.records == 6 and finding.cut)
        else:
            assert finding.records == 8
    assert found > 200


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_early_flip_names_its_place(number: int) -> None:
    disk = three_segments(clean=False)
    path = paths(disk)[number]
    offset = Segment.load(disk, path).data_start + GROUP_HEADER.size + 40

    def flip(data: bytearray) -> None:
        data[offset] ^= 1

    error = look(damaged(disk, path, flip)).error
    assert isinstance(error, Damaged)
    assert error.path == str(path)
    assert error.offset is not None
    assert offset - 60 <= error.offset <= offset


@pytest.mark.parametrize("sectors", [1, 3, 8])
def test_a_hole_below_a_later_watermark_is_damage(sectors: int) -> None:
    """Zeros where records were look like the end of the log; a later group's header says that they are not."""
    script = begin()
    for n in range(1, 12):
        script.append(payload(n, 900))
    disk = script.disk.crashed(Fate())
    path = paths(disk)[0]
    used = len(disk.read(path).rstrip(b"\0"))
    last_group = used - 900 - 200
    for start in range(1024, last_group - sectors * 512, 512):
        def hole(data: bytearray, start: int = start) -> None:
            data[start : start + sectors * 512] = bytes(sectors * 512)

        other = damaged(disk, path, hole)
        before = other.read(path)
        error = look(other).error
        assert isinstance(error, Damaged)
        assert error.path == str(path)
        assert error.offset is not None
        assert error.offset <= start + sectors * 512
        assert other.read(path) == before, "damage must be left as it is"


def test_a_damaged_block_at_the_end_of_a_sealed_segment_is_left_as_it_is() -> None:
    """The block held the footer and the last records. The next segment says what must be there: nothing is cut."""
    disk = three_segments(clean=True)
    path = paths(disk)[1]

    def wipe(data: bytearray) -> None:
        data[-4096:] = bytes(4096)

    other = damaged(disk, path, wipe)
    before = other.read(path)
    error = look(other).error
    assert isinstance(error, Damaged)
    assert error.path == str(path)
    assert other.read(path) == before


def test_log_at_or_below_the_engines_position_is_never_cut() -> None:
    script = begin()
    for n in range(1, 6):
        script.append(payload(n, 100))
    disk = script.disk.crashed(Fate())
    path = paths(disk)[0]
    at = script.records[-1].position

    def flip(data: bytearray) -> None:
        data[len(bytes(data).rstrip(b"\0")) - 20] ^= 1

    assert look(damaged(disk, path, flip)).records == 4  # the last group: torn, as far as anyone knows
    other = damaged(disk, path, flip)
    before = other.read(path)
    error = look(other, engine_position=at).error
    assert isinstance(error, Damaged)
    assert error.path == str(path)
    assert other.read(path) == before

    def wipe(data: bytearray) -> None:
        end = len(bytes(data).rstrip(b"\0"))
        data[end - 300 : end] = bytes(300)

    error = look(damaged(disk, path, wipe), engine_position=at).error
    assert isinstance(error, Damaged)


def test_engine_position_beyond_the_log_or_of_another_history_is_damage() -> None:
    disk = three_segments(clean=True)
    error = look(disk.copy(), engine_position=Position(9, bytes(16))).error
    assert isinstance(error, Damaged)
    assert "9" in error.message
    error = look(disk.copy(), engine_position=Position(8, bytes(16))).error
    assert isinstance(error, Damaged)
    assert "another history" in error.message


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_segment_is_damage(number: int) -> None:
    disk = three_segments(clean=True)
    disk.unlink(paths(disk)[number])
    if number:
        assert isinstance(look(disk).error, Damaged)
    else:  # the oldest may have been pruned: then the engine's position says whether it was needed
        with pytest.raises(Damaged):
            Log.open(DIRECTORY, engine_position=START, options=SMALL, env=quiet_env(disk))


def test_stale_bytes_of_another_segment_never_pass() -> None:
    """The disk hands out a sector of a deleted segment again: valid records once, of another segment id."""
    script = begin()
    script.append(b"one")
    disk = script.disk.crashed(Fate())
    path = paths(disk)[0]
    end = len(disk.read(path).rstrip(b"\0"))

    stale = SimDisk()
    other = Log.create(DIRECTORY, HISTORY, START, engine="memory", options=SMALL,
                       env=Env(stale, SetClock(), SeededRandomness(77), script.env.scheduler))
    for text in (b"one", b"two", b"three"):
        other.writer.append(text, 1)
        other.writer.sync()
    old = stale.read(paths(stale)[0])
    start = Segment.load(stale, paths(stale)[0]).data_start
    assert start == Segment.load(disk, path).data_start
    assert old[start : start + 4] == disk.read(path)[start : start + 4]

    def reuse(data: bytearray) -> None:
        data[end:] = old[end : len(data)]

    finding = look(damaged(disk, path, reuse))
    assert (finding.error, finding.records, finding.cut) == (None, 1, True)


def test_read_only_changes_nothing_and_leaves_out_what_may_not_be_durable() -> None:
    script = begin()
    script.append(b"one")
    script.append(b"two", b"three")
    disk = script.disk.crashed(Fate())
    before = disk.copy()

    def shown(engine_position: Position | None) -> int:
        log = Log.open(DIRECTORY, engine_position=engine_position, read_only=True, options=SMALL,
                       env=quiet_env(disk))
        return log.end.txid

    assert shown(None) == 1
    assert shown(script.records[0].position) == 1
    assert shown(script.records[1].position) == 3  # the group is durable as a whole
    assert not disk.ops
    assert disk.read(paths(disk)[0]) == before.read(paths(before)[0])


def test_recovery_tells_what_it_did() -> None:
    script = begin()
    script.append(b"one")
    script.append(payload(2, 5000))
    disk = script.disk.copy()
    cut = disk.crashed(FATES["first sectors"]())
    log = opened(cut, SMALL)
    assert log.recovery.clean is False
    assert log.recovery.cut_bytes == 0
    assert log.recovery.rewritten_bytes > 5000  # the last group may have been in memory only

    torn = damaged(cut, paths(cut)[0], lambda data: None)
    assert opened(torn, SMALL).recovery.clean  # sealed by the first recovery

    def tear(data: bytearray) -> None:
        data[len(bytes(data).rstrip(b"\0")) - 1] ^= 1

    log = opened(damaged(script.disk.crashed(Fate()), paths(script.disk)[0], tear), SMALL)
    assert log.recovery.path == str(paths(script.disk)[0])
    assert log.recovery.cut_bytes > 5000
    assert log.end.txid == 1


def test_a_header_that_is_no_header_is_named() -> None:
    disk = three_segments(clean=True)
    for change in (lambda data: data.clear(), lambda data: data.__setitem__(slice(0, 8), b"NONSENSE")):
        with pytest.raises(HoldfastError) as caught:
            opened(damaged(disk, paths(disk)[1], change), SMALL)
        assert paths(disk)[1].name in str(caught.value)
