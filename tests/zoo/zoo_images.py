"""Animals whose images are not what they say, or which do not open a copy as they should."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from staging_memory import StagingMemory
from zoo import animal

from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.image import Image, ImageFile
from holdfast.engine.model.positions import Position
from holdfast.engine.toolkit.file_image import FileImage


class ReadByName(Image):
    """An image that opens its file, `stored`, anew for each read."""

    def __init__(self, engine: Any, stored: str) -> None:
        self._read, self._path = engine._env.files.read, engine._directory / stored
        self.position = engine._position
        self.files: Sequence[ImageFile] = (ImageFile("state", len(self._read(self._path))),)

    def read(self, name: str, offset: int, length: int) -> bytes:
        data: bytes = self._read(self._path)
        return data[offset : offset + length]

    def close(self) -> None: ...


@animal(caught_by="EngineContract.test_an_image_is_what_it_is_declared_to_be",
        also=["ReplayContract.test_a_copy_seeded_during_writes_is_right",
              "BackupContract.test_a_backup_during_writes_is_of_the_position_it_names"])
class MovingThoughStable(MemoryEngine):
    """The image opens its file by name for each read. A checkpoint in between puts another file there, and the copy is
    half of one and half of the other."""

    def image(self) -> Image:
        return ReadByName(self, "state")


@animal(
    caught_by="EngineContract.test_an_image_outlives_its_files",
    also=["BackupContract.test_two_backups_at_once_do_not_disturb_each_other"])
class VanishingImage(MemoryEngine):
    """The image is a file of its own, and the next checkpoint removes it although somebody still copies it."""

    def image(self) -> Image:
        files = self._env.files
        files.write_durably(self._directory / "image", files.read(self._directory / "state"))
        return ReadByName(self, "image")

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            self._env.files.unlink(self._directory / "image", missing_ok=True)
        return super().checkpoint(upto)


@animal(
    caught_by="EngineContract.test_an_image_is_what_it_is_declared_to_be",
    also=["BackupContract.test_a_stable_image_restores_to_its_own_position",
          "ClusterContract.test_a_member_joins_while_others_write",
          "ClusterContract.test_a_copy_of_a_follower_is_of_the_position_it_names"])
class ImageAhead(MemoryEngine):
    """The image says that it is of the newest position, and holds what was checkpointed before: whoever replays from
    there leaves out what lies between."""

    def image(self) -> Image:
        return FileImage(self._env, self._directory, ("state",), self._applied)


@animal(caught_by="EngineContract.test_an_image_in_the_middle_of_a_checkpoint")
class ImageInBetween(StagingMemory):
    """A checkpoint puts a new file in place, then moves the position. An image that is made in between holds the new
    state and says the old position."""

    def image(self) -> Image:
        return FileImage(self._env, self._directory, ("state",), self._position)


@animal(caught_by="EngineContract.test_an_image_is_what_it_is_declared_to_be")
class ImageOfHalf(RecordsEngine):
    """The image lists one file of two: the other is empty in every store that its author tried."""

    def image(self) -> Image:
        image = super().image()
        image.files = [file for file in image.files if file.name != "overflow"]
        return image




@animal(caught_by="BackupContract.test_a_repository_restores_every_point")
class RemembersItsFirstImage(MemoryEngine):
    """The bytes of an image are kept for the next one, to spare the disk, and only its position is new."""

    _kept: bytes | None = None

    def image(self) -> Image:
        found = super().image()
        if self._kept is None:
            self._kept = found.read("state", 0, found.files[0].size)
            return found
        return Remembered(found, self._kept)


class Remembered(Image):
    """Another image's bytes under a new image's position."""

    def __init__(self, found: Image, kept: bytes) -> None:
        self._found, self._kept = found, kept
        self.position, self.files = found.position, (ImageFile("state", len(kept)),)

    def read(self, name: str, offset: int, length: int) -> bytes:
        return self._kept[offset : offset + length]

    def close(self) -> None:
        self._found.close()


class OnePlace(ReadByName):
    """An image that is read as a file is: it goes to the place, and reads from there."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        self._at = offset
        data: bytes = self._read(self._path)
        return data[self._at : self._at + length]


@animal(caught_by="EngineContract.test_an_image_is_read_by_several_at_once")
class OnePlaceInTheFile(MemoryEngine):
    """An image goes to a place in its file and reads from there, in two steps. Two streams of one backup get each
    other's bytes."""

    def image(self) -> Image:
        return OnePlace(self, "state")
