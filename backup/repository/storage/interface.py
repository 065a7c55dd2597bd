"""What a repository needs of its storage: named objects that are put once and never changed.

Storage of your own is a subclass of `ObjectStore`. `ObjectStoreContract` in `holdfast.backup.testing` tries it. To open
it by URL, register the class under its scheme in the entry-point group `holdfast.object_stores`; it is called with the
URL and the environment.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

from ....engine.env.shown import shown
from ....engine.errors import Damaged, InvalidInput

MAX_OBJECT_BYTES = 64 << 20
"""The largest object. It is put by one request, since a condition on a name holds for one request everywhere."""

MAX_NAME_BYTES = 200
"""The longest name of an object."""

_PART = r"[a-z0-9_-][a-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")


class StoredObject(NamedTuple):
    """An object, as a list shows it.

    Attributes:
        name: of the object.
        size: bytes.
        modified_us: when it was put, by the storage's clock, microseconds since the Unix epoch. Many clouds tell whole
            seconds.
    """

    name: str
    size: int
    modified_us: int


class ObjectStore(ABC):
    """Named objects. Each call may come from any thread, and several at once. None may come after `close`.

    A name has parts with `/` between them. A part has characters of `a-z0-9._-` and does not begin with a dot. A name
    has at most `MAX_NAME_BYTES`. No object's name may be the folder of another: where there is `a/b`, there is no `a`.
    Storage need not notice.

    Beside what is listed, each call may raise `StorageUnavailable`, `StorageDenied`, `StorageUnsuitable`, and on a
    local disk what `system_errors` makes of the system's errors, such as `DeviceFailed`.

    Attributes:
        url: for people and logs. It holds no secret.
    """

    url: str

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Create an object. When this returns, the object is durable, and whole for everybody. Of several who put one
        name, one succeeds.

        Raises:
            ObjectExists: the name is taken, by an object that is durable.
            StorageUnavailable: whether it was created is not known. It may even be created later. There is never a part
                of it.
            DiskFull: there was no room, and nothing was created.
            InvalidInput: the name is not valid, or `data` is larger than `MAX_OBJECT_BYTES`.
        """

    @abstractmethod
    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Exactly `length` bytes from `offset` on, or everything from there on if `length` is None. The object is
        durable: whoever builds on what was read builds on what a power cut does not take.

        Raises:
            ObjectMissing: there is no such object.
            Damaged: the object ends before the range does.
            InvalidInput: the name, or the range, is not valid.
        """

    @abstractmethod
    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects whose names begin with `prefix`, in the order of their names. A prefix need not end with a part:
        `a/b` finds `a/b1` and `a/b/c`. An empty one finds all.

        The list is a hint. It may miss objects that were put while it was made, and may show removed ones. What it
        shows is durable, as with `get`: whoever copies a repository does not put again what is there.

        Raises:
            InvalidInput: no name begins like this.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object, if it is there. After a power cut it may be there again. Put the name again only after
        this has returned: until then, a repeated request may remove the new object.

        Raises:
            InvalidInput: the name is not valid.
        """

    def replaceable(self, name: str, data: bytes) -> bool | None:
        """Whether these credentials may put something over an object, which a repository never does: it is tried. Only
        a probe asks, of an object that means nothing. None: it is not known.

        Raises:
            InvalidInput: as `put`.
        """
        return None

    def room(self) -> int | None:
        """Bytes that can still be stored; None if there is no such bound, or it is not known."""
        return None

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Release what it holds. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def check_name(name: str) -> None:
    """Raise `InvalidInput` if no object can have this name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > MAX_NAME_BYTES:
        raise InvalidInput(f"{shown(name)} is not a name for an object",
                           hint=f"use parts of a-z, 0-9, '.', '_' and '-' with '/' between them, none of which begins "
                                f"with a dot, and at most {MAX_NAME_BYTES} bytes")


def check_prefix(prefix: str) -> None:
    """Raise `InvalidInput` if no name begins with `prefix` and goes on after it."""
    check_name(f"{prefix}x" if isinstance(prefix, str) else prefix)


def check_object(name: str, data: bytes) -> None:
    """Raise `InvalidInput` if no object can have this name and content."""
    check_name(name)
    if not isinstance(data, bytes):
        raise InvalidInput(f"the content of {name} is a {type(data).__name__}, not bytes", hint="pass bytes")
    if len(data) > MAX_OBJECT_BYTES:
        raise InvalidInput(f"{name} has {len(data):,} bytes, and an object has at most {MAX_OBJECT_BYTES:,}",
                           hint="split it into several objects")


def check_range(name: str, offset: int, length: int | None) -> None:
    """Raise `InvalidInput` if this is not a part of any object called `name`."""
    check_name(name)
    if offset < 0 or (length is not None and length < 0):
        raise InvalidInput(f"{length} bytes at {offset} is not a range of {name}", hint="use numbers from 0 on")


def too_short(url: str, name: str, size: int, offset: int, length: int | None) -> Damaged:
    """The error of an object that ends before the range does. `size`: of the object."""
    what = f"{length:,} bytes" if length is not None else "the bytes"
    return Damaged(f"has {size:,} bytes, and {what} from {offset:,} on were asked for", path=f"{url}/{name}")
