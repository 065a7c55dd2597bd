"""Objects in a bucket of S3, Google Cloud Storage or Azure, or of anything that speaks one of their languages, through
obstore (`pip install 'holdfast[s3]'`).

Credentials, region and endpoint come from the environment variables that obstore knows, such as AWS_ACCESS_KEY_ID,
AWS_REGION and AWS_ENDPOINT_URL, or from the machine's own identity in its cloud. So the URL holds no secret.

A put is one request with the condition that the name is free. It is not repeated here: after a lost answer, the second
request would meet the object of the first, and say that somebody else has the name. Reads and removals are repeated, by
`repeated`. obstore itself repeats nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ....engine.env import REAL, Env
from ....engine.env.shown import shown
from ....engine.errors import HoldfastError, InvalidInput, Unsupported
from ..errors import ObjectExists, ObjectMissing, StorageDenied, StorageUnavailable, StorageUnsuitable
from .interface import ObjectStore, StoredObject, check_name, check_object, check_prefix, check_range, too_short
from .putting import PAUSE_S, TRIES, repeated

CONNECT_S = 10
"""How long a connection may take."""

STALL_S = 30
"""How long a read may wait for the next bytes."""

REQUEST_S = 300
"""How long a request may take altogether: `MAX_OBJECT_BYTES` at 2 Mbit/s."""

_PREFIXES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_OF_THE_ENVIRONMENT = ("allow_http", "proxy_url", "proxy_ca_certificate", "proxy_excludes")
_URL = re.compile(r"(?P<scheme>[a-z0-9]+)://(?P<bucket>[A-Za-z0-9._-]+)(?P<prefix>(?:/[A-Za-z0-9._=+-]+)*)/?")
_STATUS = re.compile(r"status code: (\d{3})")
_SAID = re.compile(r"<Code>(\w+)</Code>(?:\s*<Message>([^<]*))?")
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
_FREE, _CONFLICT, _OUT_OF_RANGE = 412, 409, 416


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
        match = _URL.fullmatch(url)
        if match is None or match["scheme"] not in _PREFIXES:
            what = "this" if "@" in url else shown(url)  # it may have a password
            raise InvalidInput(f"{what} is not the URL of a bucket",
                               hint="write s3://bucket/prefix, gs://… or az://…, with letters, digits and . _ = + - in "
                                    "the prefix; credentials come from the environment")
        self.url = f"{match['scheme']}://{match['bucket']}{match['prefix']}"
        self._env = env
        self._obstore = _obstore()
        options = _client_options(_PREFIXES[match["scheme"]], os.environ)
        self._puts = self._client(options)  # the time-out for reads would count the time that a put takes to send
        self._reads = self._client({**options, "read_timeout": f"{STALL_S}s"})

    def _client(self, options: dict[str, Any]) -> Any:
        try:
            return self._obstore.store.from_url(self.url, client_options=options, retry_config={"max_retries": 0})
        except (self._obstore.exceptions.BaseError, ValueError, TypeError) as error:
            raise StorageUnsuitable(f"{self.url} cannot be opened: {_first_line(error)}",
                                    hint="check the variables of the environment that configure it") from error

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

    @contextmanager
    def _told(self, doing: str, name: str) -> Iterator[None]:
        """Turn obstore's errors into those of a repository. What they say is only text."""
        told = self._obstore.exceptions
        try:
            yield
        except HoldfastError:
            raise
        except Exception as error:
            text = str(error)
            status = int(found[1]) if (found := _STATUS.search(text)) else 0
            code, message = found.groups() if (found := _SAID.search(text)) else ("", None)
            said = f"{code}: {message}" if message else code or (f"status {status}" if status else _first_line(error))
            doing = f"cannot {doing} {self.url}/{name}: {said}"
            if code in _NO_BUCKET:
                raise StorageUnsuitable(doing, hint="check the bucket's name, or make it first") from error
            if isinstance(error, (told.PermissionDeniedError, told.UnauthenticatedError)) or status in (401, 403):
                raise StorageDenied(doing) from error
            if status == _CONFLICT:
                raise _Conflict(doing) from error
            if status == _OUT_OF_RANGE:
                raise _OutOfRange(doing) from error
            if status == _FREE or isinstance(error, (told.AlreadyExistsError, told.PreconditionError)):
                raise ObjectExists(f"{self.url}/{name} is there already") from error
            if isinstance(error, (told.NotFoundError, FileNotFoundError)):
                raise ObjectMissing(f"{self.url}/{name} is not there") from error
            if isinstance(error, (told.NotSupportedError, NotImplementedError)):
                raise StorageUnsuitable(doing) from error
            raise StorageUnavailable(doing) from error


class _Conflict(StorageUnavailable):
    """Status 409."""


class _OutOfRange(HoldfastError):
    """Status 416."""


def _obstore() -> Any:
    """The module obstore. Raises `Unsupported` if it is not installed."""
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise Unsupported("buckets need obstore, which is not installed",
                          hint="pip install 'holdfast[s3]'") from error
    return obstore


def _client_options(prefix: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """What obstore would take from the environment if it were given no options, and the time-outs."""
    found = {key: environ[f"{prefix}{key.upper()}"] for key in _OF_THE_ENVIRONMENT
             if f"{prefix}{key.upper()}" in environ}
    return {"connect_timeout": f"{CONNECT_S}s", "timeout": f"{REQUEST_S}s", **found}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
