"""Objects in a bucket of S3, Google Cloud Storage or Azure: see `bucket.py`.

A put is one request with the condition that the name is free. It is not repeated here: after a lost answer, the second
request would meet the object of the first, and say that somebody else has the name. Reads and removals are repeated, by
`repeated`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ....engine.env import REAL, Env
from ....engine.errors import HoldfastError
from ..errors import ObjectExists, ObjectMissing, StorageDenied, StorageUnavailable, StorageUnsuitable
from .bucket import NO_BUCKET, Bucket, refusal
from .interface import ObjectStore, StoredObject, check_name, check_object, check_prefix, check_range, too_short
from .putting import PAUSE_S, TRIES, repeated

CONNECT_S = 10
"""How long a connection may take."""

STALL_S = 30
"""How long a read may wait for the next bytes."""

REQUEST_S = 300
"""How long a request may take altogether: `MAX_OBJECT_BYTES` at 2 Mbit/s."""


class CloudObjectStore(ObjectStore):
    """Objects below a prefix of a bucket. Nothing is asked of the cloud before the first call.

    A list keeps what it found in memory, to order it: some 300 bytes an object.
    """

    def __init__(self, url: str, *, env: Env = REAL) -> None:
        """
        Args:
            url: `s3://bucket/prefix`, `gs://bucket/prefix`, or `az://container/prefix` with the account in
                AZURE_STORAGE_ACCOUNT_NAME.
            env: clock for pauses.

        Raises:
            InvalidInput: the URL is not valid.
            Unsupported: obstore is not installed.
            StorageUnsuitable: obstore refuses the configuration.
        """
        bucket = Bucket(url)
        self.url = bucket.url
        self._env = env
        self._obstore = bucket.obstore
        timeouts = {"connect_timeout": f"{CONNECT_S}s", "timeout": f"{REQUEST_S}s"}
        self._puts = bucket.client(**timeouts)  # the time-out for reads would count the time that a put takes to send
        self._reads = bucket.client(**timeouts, read_timeout=f"{STALL_S}s")

    def put(self, name: str, data: bytes) -> None:
        check_object(name, data)
        pause = PAUSE_S
        for left in reversed(range(TRIES)):
            try:
                with self._told("put", name):
                    self._obstore.put(self._puts, name, data, mode="create", use_multipart=False)
                return
            except _Conflict as conflict:
                # S3 says so while another put of the name goes on, Azure also where the name is taken.
                if self._size(name) is not None:
                    raise ObjectExists(f"{self.url}/{name} is there already") from conflict
                if not left:
                    raise StorageUnavailable(conflict.message, hint=conflict.hint) from conflict
            self._env.clock.sleep(pause)
            pause *= 2

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(name, offset, length)
        return repeated(lambda: self._get(name, offset, length), self._env)

    def _get(self, name: str, offset: int, length: int | None) -> bytes:
        end = None if length is None else offset + length
        if length == 0:  # HTTP has no empty ranges
            return self._nothing(name, offset, length)
        options: dict[str, Any] = {}
        if offset or end is not None:
            options["range"] = {"offset": offset} if end is None else (offset, end)
        try:
            with self._told("get", name):
                answer = self._obstore.get(self._reads, name, options=options)
                size = int(answer.meta["size"])
                data = bytes(answer.bytes())
        except _OutOfRange:
            return self._nothing(name, offset, length)
        if end is not None and end > size:
            raise too_short(self.url, name, size, offset, length)
        expected = (size if end is None else end) - offset
        if len(data) != expected:
            raise StorageUnavailable(f"{len(data):,} bytes of {self.url}/{name} came, and not {expected:,}")
        return data

    def _nothing(self, name: str, offset: int, length: int | None) -> bytes:
        """What is at the end of an object."""
        size = self._size(name)
        if size is None:
            raise ObjectMissing(f"{self.url}/{name} is not there")
        if offset > size or (offset + (length or 0)) > size:
            raise too_short(self.url, name, size, offset, length)
        if offset < size and length is None:
            raise StorageUnavailable(f"{self.url}/{name} has {size:,} bytes, and those from {offset:,} on were refused")
        return b""

    def _size(self, name: str) -> int | None:
        """Bytes of an object; None if it is not there. One request."""
        try:
            with self._told("look at", name):
                return int(self._obstore.head(self._reads, name)["size"])
        except ObjectMissing:
            return None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        check_prefix(prefix)
        return iter(repeated(lambda: self._listed(prefix), self._env))

    def _listed(self, prefix: str) -> Sequence[StoredObject]:
        found = []
        with self._told("list", prefix):
            # It takes prefixes of whole parts only.
            for some in self._obstore.list(self._reads, prefix.rpartition("/")[0] or None, chunk_size=1000):
                found += [StoredObject(one["path"], one["size"], int(one["last_modified"].timestamp() * 1_000_000))
                          for one in some if one["path"].startswith(prefix)]
        return sorted(found)

    def delete(self, name: str) -> None:
        check_name(name)
        with suppress(ObjectMissing):
            repeated(lambda: self._delete(name), self._env)

    def _delete(self, name: str) -> None:
        with self._told("delete", name):
            self._obstore.delete(self._reads, name)

    def replaceable(self, name: str, data: bytes) -> bool:
        check_object(name, data)

        def put() -> bool:
            try:
                with self._told("replace", name):
                    self._obstore.put(self._puts, name, data, mode="overwrite", use_multipart=False)
            except (StorageDenied, ObjectExists, _Conflict):  # a policy asks for the condition, or the object is locked
                return False
            return True

        return repeated(put, self._env)

    @contextmanager
    def _told(self, doing: str, name: str) -> Iterator[None]:
        """Turn obstore's errors into those of a repository."""
        try:
            yield
        except HoldfastError:
            raise
        except Exception as error:
            refused = refusal(error)
            doing = f"cannot {doing} {self.url}/{name}: {refused.said}"
            if refused.code in NO_BUCKET:
                raise StorageUnsuitable(doing, hint="check the bucket's name, or make it first") from error
            match refused.status:
                case 401 | 403:
                    raise StorageDenied(doing) from error
                case 404:
                    raise ObjectMissing(f"{self.url}/{name} is not there") from error
                case 409:
                    raise _Conflict(doing) from error
                case 412:
                    raise ObjectExists(f"{self.url}/{name} is there already") from error
                case 416:
                    raise _OutOfRange(doing) from error
                case 501:
                    raise StorageUnsuitable(doing) from error
                case _:
                    raise StorageUnavailable(doing) from error


class _Conflict(StorageUnavailable):
    """Status 409."""


class _OutOfRange(HoldfastError):
    """Status 416."""
