"""An image of files that do not change, or that change in place while they are copied."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from ..contract.image import Image, ImageFile
from ..env import Env, File, is_disk_full
from ..errors import Damaged, DiskFull, InvalidInput, StoreClosed
from ..model.positions import Position

MAX_HELD = 64
"""The most files that an image may hold open. There may be sixteen images, and a process can often open only 1,024."""

logger = logging.getLogger("holdfast.store")


class FileImage(Image):
    """An image of plain files, which stays readable whatever the engine does to them meanwhile.

    It holds files of the engine's own directory open, so that they may be replaced or deleted. If there may be many,
    use `copied`. Sizes are taken when the image is made, because what a file grows by later belongs to later
    transactions.
    """

    def __init__(self, env: Env, directory: Path, names: Sequence[str], position: Position) -> None:
        """
        Args:
            env, directory: the environment, and the state's directory.
            names: the files in `directory` that make up the image.
            position: the engine's position now.

        Raises:
            OSError: a file is not there or cannot be opened; then none stays open.
            InvalidInput: there are more than `MAX_HELD` files.
        """
        if len(names) > MAX_HELD:
            raise InvalidInput(f"an image cannot hold {len(names)} files open, {MAX_HELD} is the most",
                               hint="link or copy them into a directory: FileImage.copied")
        self.position = position
        self._files = env.files
        self._directory = directory
        self._own = False
        self._lock = env.scheduler.lock()
        self._reading = 0
        self._closed = False
        self._held: dict[str, File] = {}
        try:
            for name in names:
                self._held[name] = env.files.open(directory / name, "read")
            self._measured({name: file.size() for name, file in self._held.items()})
        except BaseException:
            self._let_go()
            raise

    @classmethod
    def copied(cls, env: Env, place: Path, copy: Callable[[Path], Position]) -> Self:
        """An image with its own directory, which `close` removes. A file is open only while it is read.

        Args:
            env: the environment.
            place: the directory, on the engine's file system. It must not exist yet.
            copy: creates `place`, links or copies the files into it, and returns the position that they hold.

        Raises:
            DiskFull: there is no room. Whatever is raised, `place` is removed.
        """
        try:
            image = cls(env, place, (), copy(place))
            image._own = True
            image._measured({name: env.files.size(place / name) for name in env.files.list(place)})
            return image
        except BaseException as error:
            env.files.remove_tree(place)
            if is_disk_full(error):
                raise DiskFull(f"no room for an image in {place.parent}") from error
            raise

    def _measured(self, sizes: dict[str, int]) -> None:
        self._sizes = sizes
        self.files = tuple(ImageFile(name, size) for name, size in sizes.items())

    def read(self, name: str, offset: int, length: int) -> bytes:
        """As `Image.read`.

        Raises:
            InvalidInput: there is no such file or range.
            Damaged: the file was truncated after the image was made.
            StoreClosed: the image was closed.
        """
        size = self._sizes.get(name)
        if size is None or offset < 0 or length < 0 or offset + length > size:
            raise InvalidInput(f"the image has no bytes {offset} to {offset + length} of {name!r}")
        with self._lock:  # count readers, so that `close` never closes a file during a read
            if self._closed:
                raise StoreClosed("this image is closed", hint="take another lease")
            self._reading += 1
        try:
            data = self._held[name].pread(length, offset) if not self._own else self._read_own(name, offset, length)
        finally:
            with self._lock:
                self._reading -= 1
                last = self._closed and not self._reading
            if last:
                self._let_go()
        if len(data) != length:
            raise Damaged("was cut short", path=name, offset=offset + len(data))
        return data

    def _read_own(self, name: str, offset: int, length: int) -> bytes:
        file = self._files.open(self._directory / name, "read")
        try:
            return file.pread(length, offset)
        finally:
            file.close()

    def close(self) -> None:
        with self._lock:
            last = not self._closed and not self._reading
            self._closed = True
        if last:
            self._let_go()

    def _let_go(self) -> None:
        for file in self._held.values():
            file.close()
        if self._own:
            try:
                self._files.remove_tree(self._directory)
            except OSError as error:  # the engine's next opening removes it
                logger.warning("%s, the directory of a closed image, cannot be removed: %s", self._directory, error)
