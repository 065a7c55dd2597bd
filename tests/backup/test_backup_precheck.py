"""An incremental looks at what it adds to.

With the image deleted, emptied or changed, or the log's old part rotten, each run said "done", named bounds that it
could not restore to, and registered its end, so that the source pruned the log that would have mended it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from backup_worlds import in_chunks, open_store, tree, write

from holdfast import backup
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.errors import Damaged, SettingError
from holdfast.engine.store.store import Store
from holdfast.engine.wal.log import NEWEST
from holdfast.replay.files import DigestedFiles


@pytest.fixture
def taken(tmp_path: Path) -> tuple[Store, Path]:  # type: ignore[type-arg]
    """A store, closed, and its backup: an image of many transactions, and some in three segments of log."""
    with open_store(tmp_path / "store", MemoryEngine) as store:
        write(store, 1, 40)
        store.checkpoint()
        backup.run(store, tmp_path / "target")
        for n in range(6):
            write(store, 2 + n, 3)
            store.log.writer.extend_history(store.history, store.log.epoch + 1)  # a segment ends here
            backup.run(store, tmp_path / "target")
        write(store, 9)
        return store, tmp_path / "target"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def image(target: Path) -> Path:
    return next((target / "gen-000001" / "state").iterdir())


def segments(target: Path) -> list[Path]:
    return sorted((target / "gen-000001" / "log").glob("*.seg"))


RUINS: dict[str, Callable[[Path], object]] = {
    "the image deleted": lambda target: image(target).unlink(),
    "the image emptied": lambda target: image(target).write_bytes(b""),
    "the image cut": lambda target: image(target).write_bytes(image(target).read_bytes()[:-1]),
    "the image longer": lambda target: image(target).write_bytes(image(target).read_bytes() + b"\0"),
    "the image changed": lambda target: flip(image(target), 1000),
    "the newest segment changed": lambda target: flip(segments(target)[-1], 300),
    "the segment before it changed": lambda target: flip(segments(target)[-2], 300),
    "the newest segment cut": lambda target: segments(target)[-1].write_bytes(segments(target)[-1].read_bytes()[:400]),
    "a segment in the middle gone": lambda target: segments(target)[2].unlink(),
    "a segment in the middle emptied": lambda target: segments(target)[2].write_bytes(b""),
    "the newest segment gone": lambda target: segments(target)[-1].unlink(),
}


@pytest.mark.parametrize("ruin", RUINS)
def test_a_ruined_target_takes_no_log(tmp_path: Path, taken: tuple[object, Path], ruin: str) -> None:
    """The run says so, changes nothing and offers a full one. That is taken as a new generation then."""
    _, target = taken
    RUINS[ruin](target)
    before = tree(target)
    with open_store(tmp_path / "store", MemoryEngine) as store:
        known = store.log.slots.list()
        with pytest.raises(Damaged) as told:
            backup.run(store, target)
        assert "--full" in told.value.hint
        assert {**tree(target), "LOCK": before["LOCK"]} == before
        assert [c.position for c in store.log.slots.list()] == [c.position for c in known]
        report = backup.run(store, target, full=True)
        assert (report.kind, report.to_txid) == ("full", store.published.txid)
        write(store, 20)
        assert backup.run(store, target).kind == "incremental"
    assert backup.verify(target).bounds.last == report.to_txid + 1


def test_each_older_segment_comes_round(tmp_path: Path, taken: tuple[object, Path]) -> None:
    _, target = taken
    older = segments(target)[:-NEWEST]
    assert len(older) > 2
    for path in older:
        whole = path.read_bytes()
        flip(path, 300)
        found = 0
        with open_store(tmp_path / "store", MemoryEngine) as store:
            for _ in range(len(older) + 2):  # there may be another by now
                try:
                    backup.run(store, target)
                except Damaged:
                    found += 1
                    path.write_bytes(whole)
        assert found == 1


def test_each_chunk_of_the_image_comes_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, chunks = in_chunks(200), backup.Limits().sampled_chunks
    target = tmp_path / "target"
    with open_store(tmp_path / "store", MemoryEngine) as store:
        write(store, 1, 45, size=200)
        store.checkpoint()
        backup.run(store, target, policy=policy)
        size = image(target).stat().st_size
        assert size > chunks * 200 * 2
        seen = set()
        read = DigestedFiles.read

        def noted(self: DigestedFiles, name: str, offset: int, length: int) -> bytes:
            seen.add(offset)
            return read(self, name, offset, length)

        monkeypatch.setattr(DigestedFiles, "read", noted)
        for n in range(1, 1 + -(-size // (chunks * 200))):
            backup.run(store, target, policy=policy)
            assert len(seen) == min(n * chunks, -(-size // 200))


def test_all_of_a_target_can_be_looked_at(tmp_path: Path, taken: tuple[object, Path]) -> None:
    _, target = taken
    whole = image(target).read_bytes()
    flip(image(target), 1000)
    with open_store(tmp_path / "store", MemoryEngine) as store:
        with pytest.raises(Damaged, match="differs from what was copied"):
            backup.run(store, target, policy=backup.Policy(check="all"))
        no_chunk = backup.Policy(limits=backup.Limits(sampled_chunks=0))
        backup.run(store, target, policy=no_chunk)  # it does not find it
        image(target).write_bytes(whole)
        backup.run(store, target, policy=backup.Policy(check="all"))
        with pytest.raises(SettingError, match="check is"):
            backup.run(store, target, policy=backup.Policy(check="some"))
