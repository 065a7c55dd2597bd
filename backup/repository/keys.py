"""Keys: the repository's key, which the operator keeps, and the data keys, which it wraps.

An object `keys/N` holds all data keys, each encrypted with a key that scrypt makes from the repository's key. A
rotation puts `keys/N+1`: the same data keys and a new one, wrapped with the new key. So no object is written again,
what is written from then on has a key that the old one does not open, and the old key opens nothing once `keys/N` is
deleted.

The repository's key is any secret of 16 bytes or more, from a file, the environment, or a command.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess  # noqa: TID251  the operator's own command
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...engine.env import REAL, Env
from ...engine.env.shown import shown
from ...engine.errors import Damaged, SettingError
from ...engine.model import document
from .errors import KeyMissing, KeyWrong, ObjectExists, ObjectMissing
from .storage.interface import ObjectStore
from .storage.putting import put_own

_MAGIC, _VERSION = b"HFRKEYS\0", 1
_LEAST_BYTES = 16
_MOST_BYTES = 4096
_COMMAND_S = 60.0
_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20, "dklen": 32}
"""About a tenth of a second, 32 MiB."""
ENVIRONMENT, COMMAND = "HOLDFAST_REPOSITORY_KEY", "HOLDFAST_REPOSITORY_KEY_COMMAND"


@dataclass(frozen=True, slots=True)
class Key:
    """The repository's key. It is not shown."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not _LEAST_BYTES <= len(self.secret) <= _MOST_BYTES:
            raise SettingError(f"the repository's key has {len(self.secret)} bytes, and needs {_LEAST_BYTES} to "
                               f"{_MOST_BYTES:,}", hint="make one: openssl rand -base64 32 > KEYFILE")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], env: Env = REAL) -> Key:
        """The key in a file, without the line end. Raises `SettingError`."""
        try:
            data = env.files.read(env.files.absolute(path))
        except OSError as error:
            raise SettingError(f"the repository's key {shown(str(path))} cannot be read: {error.strerror}") from error
        return cls(data.rstrip(b"\r\n"))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Key | None:
        """The key in `HOLDFAST_REPOSITORY_KEY`, or that the command in `HOLDFAST_REPOSITORY_KEY_COMMAND` prints. None:
        neither is set. Raises `SettingError`."""
        if text := environ.get(ENVIRONMENT):
            return cls(os.fsencode(text))
        command = environ.get(COMMAND)
        if not command:
            return None
        try:
            done = subprocess.run(shlex.split(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True,
                                  timeout=_COMMAND_S)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise SettingError(f"{COMMAND}: the command gave no key: {error}") from error
        return cls(done.stdout.rstrip(b"\r\n"))


class Keyring:
    """The data keys of a repository, opened.

    Attributes:
        newest: number of the key that new objects are encrypted with.
        generation: number of the object that it was read from.
    """

    def __init__(self, keys: Mapping[int, bytes], generation: int) -> None:
        self._keys, self.newest, self.generation = dict(keys), max(keys), generation

    def derive(self, number: int, salt: bytes) -> bytes:
        """The key of an object: HKDF-SHA256 (RFC 5869) of a data key and the object's salt. Raises `KeyError`."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(SHA256(), 32, salt, b"holdfast object").derive(self._keys[number])

    @classmethod
    def make(cls, store: ObjectStore, repository_id: bytes, key: Key, env: Env) -> Keyring:
        """The first data key, stored. Raises `ObjectExists`, `StorageUnavailable`."""
        made = cls({1: env.randomness.token(32)}, 1)
        put_own(store, _name(1), made._wrapped(repository_id, key, env), env)
        return made

    @classmethod
    def read(cls, store: ObjectStore, repository_id: bytes, key: Key | None) -> Keyring:
        """Open the newest keys. One list, and two reads unless the list is old.

        Raises:
            KeyMissing: no key was given. KeyWrong: it is another one. Damaged, StorageUnavailable.
        """
        data, generation = b"", max((int(o.name[-6:]) for o in store.list("keys/")), default=1) - 1
        while True:
            try:
                data = store.get(_name(generation + 1))
            except ObjectMissing:
                break
            generation += 1
        if not data:
            raise Damaged("is missing, and the repository is encrypted", path=f"{store.url}/{_name(1)}")
        if key is None:
            raise KeyMissing(f"{store.url} is encrypted, and no key was given")
        return cls(_unwrapped(data, repository_id, key, generation, store.url), generation)

    def rotate(self, store: ObjectStore, repository_id: bytes, key: Key, env: Env) -> Keyring:
        """Begin a new data key, and wrap all with `key`. Raises `KeyWrong` if another rotation came first."""
        made = Keyring({**self._keys, self.newest + 1: env.randomness.token(32)}, self.generation + 1)
        try:
            store.put(_name(made.generation), made._wrapped(repository_id, key, env))
        except ObjectExists as error:
            raise KeyWrong(f"the keys of {store.url} were rotated by somebody else at this moment") from error
        return made

    def _wrapped(self, repository_id: bytes, key: Key, env: Env) -> bytes:
        salt = env.randomness.token(32)
        aead, nonces = _wrapping(key, salt), {n: env.randomness.token(12) for n in self._keys}
        return document.encode(_MAGIC, _VERSION, {"salt": salt, "keys": [
            [n, nonces[n], aead.encrypt(nonces[n], data_key, _bound(repository_id, n))]
            for n, data_key in sorted(self._keys.items())]})


def _name(generation: int) -> str:
    return f"keys/{generation:06d}"


def _bound(repository_id: bytes, number: int) -> bytes:
    return b"holdfast data key" + repository_id + number.to_bytes(4, "big")


def _wrapping(key: Key, salt: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(hashlib.scrypt(key.secret, salt=salt, **_SCRYPT))


def _unwrapped(data: bytes, repository_id: bytes, key: Key, generation: int, url: str) -> dict[int, bytes]:
    from cryptography.exceptions import InvalidTag

    path = Path(f"{url}/{_name(generation)}")
    body = document.decode(data, _MAGIC, _VERSION, path)
    try:
        aead = _wrapping(key, body["salt"])
        return {number: aead.decrypt(nonce, wrapped, _bound(repository_id, number))
                for number, nonce, wrapped in body["keys"]}
    except InvalidTag as error:
        raise KeyWrong(f"the key does not open {url}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"lacks or garbles a field: {error}", path=str(path)) from error
