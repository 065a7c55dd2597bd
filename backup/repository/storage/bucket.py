"""A bucket of S3, Google Cloud Storage or Azure, or of anything that speaks one of their languages, by its URL, through
obstore (`pip install 'holdfast[s3]'`).

Credentials, region and endpoint come from the environment variables that obstore knows, such as AWS_ACCESS_KEY_ID,
AWS_REGION and AWS_ENDPOINT_URL, or from the machine's own identity in its cloud. So the URL holds no secret.

obstore repeats nothing here. A put with a condition that is repeated after a lost answer meets its own object, and
whoever repeats it must be able to tell.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ....engine.env.shown import shown
from ....engine.errors import InvalidInput, Unsupported
from ..errors import StorageUnsuitable

NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
"""Codes that say that the bucket itself is missing."""

_PREFIXES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_OF_THE_ENVIRONMENT = ("allow_http", "proxy_url", "proxy_ca_certificate", "proxy_excludes")
_URL = re.compile(r"(?P<scheme>[a-z0-9]+)://(?P<bucket>[A-Za-z0-9._-]+)(?P<prefix>(?:/[A-Za-z0-9._=+-]+)*)/?")
_STATUS = re.compile(r"status code: (\d{3})")
_SAID = re.compile(r"<Code>(\w+)</Code>(?:\s*<Message>([^<]*))?")
_OF_ONE_KEY = re.compile(r"failed for key [^\n]*: ([^\n]*) \(code: (\w+)\)")
"""S3 removes several objects at once, answers 200, and says in the answer which ones it did not remove."""
_NOT_SENT = re.compile(r"\bkind: Connect\b")
_MEANT = {"NotModifiedError": 304, "UnauthenticatedError": 401, "PermissionDeniedError": 403, "NotFoundError": 404,
          "FileNotFoundError": 404, "AlreadyExistsError": 412, "PreconditionError": 412, "NotSupportedError": 501,
          "NotImplementedError": 501}


class Bucket:
    """What is below a prefix of a bucket.

    Attributes:
        url: of the prefix, without a slash at the end.
        obstore: the module, whose functions take a client.
    """

    def __init__(self, url: str) -> None:
        """
        Args:
            url: `s3://bucket/prefix`, `gs://bucket/prefix`, or `az://container/prefix` with the account in
                AZURE_STORAGE_ACCOUNT_NAME.

        Raises:
            InvalidInput: the URL is not valid.
            Unsupported: obstore is not installed.
        """
        match = _URL.fullmatch(url)
        if match is None or match["scheme"] not in _PREFIXES:
            what = "this" if "@" in url else shown(url)  # it may have a password
            raise InvalidInput(f"{what} is not the URL of a bucket",
                               hint="write s3://bucket/prefix, gs://… or az://…, with letters, digits and . _ = + - in "
                                    "the prefix; credentials come from the environment")
        self.url = f"{match['scheme']}://{match['bucket']}{match['prefix']}"
        self.obstore = _obstore()
        self._variables = _PREFIXES[match["scheme"]]

    def client(self, **timeouts: str) -> Any:
        """A client of its own connections, with obstore's time-outs, such as `connect_timeout="10s"`. The names of
        objects begin below the prefix. Nothing is asked of the cloud. Takes some milliseconds.

        Raises:
            StorageUnsuitable: obstore refuses the configuration.
        """
        options = {**timeouts, **_of_the_environment(self._variables, os.environ)}
        try:
            return self.obstore.store.from_url(self.url, client_options=options, retry_config={"max_retries": 0})
        except (self.obstore.exceptions.BaseError, ValueError, TypeError) as error:
            raise StorageUnsuitable(f"{self.url} cannot be opened: {_first_line(error)}",
                                    hint="check the variables of the environment that configure it") from error


class Refusal(NamedTuple):
    """What an error of obstore says. There it is only text.

    Attributes:
        status: HTTP's, or if there was no answer, what the error's class stands for; 0 if that is unknown.
        code: of the cloud, such as `NoSuchKey`; may be empty.
        said: for people, one line.
        sent: whether the request may have reached the server.
    """

    status: int
    code: str
    said: str
    sent: bool


def refusal(error: BaseException) -> Refusal:
    """What an error of obstore says."""
    text = str(error)
    status = int(found[1]) if (found := _STATUS.search(text)) else _MEANT.get(type(error).__name__, 0)
    code, message = found.groups() if (found := _SAID.search(text)) else ("", None)
    if found := _OF_ONE_KEY.search(text):
        message, code = found.groups()
        status = 403 if code == "AccessDenied" else status
    said = f"{code}: {message}" if message else code or (f"status {status}" if status else _first_line(error))
    return Refusal(status, code, said, status != 0 or _NOT_SENT.search(text) is None)


def _obstore() -> Any:
    """The module obstore. Raises `Unsupported` if it is not installed."""
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise Unsupported("buckets need obstore, which is not installed",
                          hint="pip install 'holdfast[s3]'") from error
    return obstore


def _of_the_environment(prefix: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What obstore would take from the environment if it were given no options."""
    return {key: environ[f"{prefix}{key.upper()}"] for key in _OF_THE_ENVIRONMENT
            if f"{prefix}{key.upper()}" in environ}


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
