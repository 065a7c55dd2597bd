"""The errors that only a repository raises."""

from __future__ import annotations

from ...engine.errors import AccessDenied, HoldfastError, NotFound
from ...engine.errors import StorageUnavailable as StorageUnavailable


class ObjectExists(HoldfastError):
    """The name is taken. Nothing was changed."""

    hint = "read what is there, and decide anew"


class ObjectMissing(NotFound):
    """There is no object with this name."""

    hint = "check that nobody else removed objects of this repository"


class StorageUnsuitable(HoldfastError):
    """The storage cannot hold a repository: it breaks a promise that repositories need, or it is not there."""

    hint = "use other storage"


class StorageDenied(AccessDenied):
    """The storage refused these credentials, or they may not do this."""

    hint = "check the credentials in the environment, and what they may do in this bucket"


class RepositoryExists(HoldfastError):
    """There is a repository already."""

    hint = "open it, or make one elsewhere"


class RepositoryMissing(HoldfastError):
    """There is no repository at this URL."""

    hint = "check the URL, or make one: holdfast repo init"


class KeyMissing(HoldfastError):
    """The repository is encrypted, and its key was not given, or is too old for what was read."""

    hint = "give the key: --key-file, or HOLDFAST_REPOSITORY_KEY or HOLDFAST_REPOSITORY_KEY_COMMAND in the environment"


class KeyWrong(HoldfastError):
    """The key that was given does not open the repository."""

    hint = "give the key that the repository was made with, or last rotated to"


class KeyNeedless(HoldfastError):
    """A key was given for a repository that is not encrypted."""

    hint = "leave the key out, or make an encrypted repository: holdfast repo init --encrypt"


class Fenced(HoldfastError):
    """Another archiver has taken over this branch, so this one has stopped."""

    hint = "only one process archives a store; find out which one should"


class SessionAborted(HoldfastError):
    """An expiry gave this backup up for dead while it ran."""

    hint = "run it again; what it has stored and is still there is used"


class BlocksDropped(HoldfastError):
    """An expiry dropped blocks that this backup was to use."""

    hint = "run it again; those blocks are stored anew"


class ExpiryVetoed(HoldfastError):
    """A plugin wants to keep what an expiry was to remove. Nothing was removed."""

    hint = "find out why it does, or run the expiry without it"


class CatalogReadOnly(HoldfastError):
    """Nothing can be added to the catalog here."""


class SalvageReadOnly(CatalogReadOnly):
    """The repository was opened without its catalog, so nothing is added to it."""

    hint = "restore what you need, and back up into a new repository"


class CopyReadOnly(CatalogReadOnly):
    """This is a copy of a repository, and only the next copy changes it."""

    hint = "use the repository that it is a copy of; or if that is lost, promote the copy: holdfast repo promote"
