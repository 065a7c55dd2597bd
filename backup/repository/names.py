"""The names of a repository's objects. A name that may be contested has nothing random in it: whoever puts it first has
it. All others have the random id of a session, so nobody else takes them.

    repository                        what this is; never encrypted
    copy-of                           in a copy: of which repository; nothing is added to its catalog then
    keys/N                            data keys, wrapped
    catalog/N                         entries; whoever puts N has read all before it
    checkpoints/N                     the state after entry N, so that readers begin there
    packs/SESSION/N                   blocks of images
    images/SESSION/root, …/log/N      an image: its tree, and the log that it needs to be whole
    log/BRANCH/N                      pieces of log, slot by slot
    merged/BRANCH/LEVEL-FIRST-LAST-ID several pieces as one
    writers/BRANCH/N                  who archives a branch: the highest number
    attachments/BRANCH/NAME/N         files that records of archived log name, and payloads that are too large for a
                                      piece; those of an image's own log are in images/SESSION/files
    probes/ID                         with which the storage was tried

Numbers have a folder for each ten thousand, so that no directory of a local disk grows large.
"""

from __future__ import annotations

REPOSITORY, COPY_OF = "repository", "copy-of"
KEYS, CATALOG, CHECKPOINTS, PACKS, IMAGES, LOG, MERGED, WRITERS, ATTACHMENTS = (
    "keys", "catalog", "checkpoints", "packs", "images", "log", "merged", "writers", "attachments")


def numbered(folder: str, number: int) -> str:
    """
    >>> numbered("catalog", 12345)
    'catalog/000001/0000012345'
    """
    return f"{folder}/{number // 10_000:06d}/{number:010d}"


def number_of(name: str) -> int:
    """The number at the end of a name that `numbered` made."""
    return int(name.rpartition("/")[2])


def pack(session: str, number: int) -> str:
    return numbered(f"{PACKS}/{session}", number)


def root(session: str) -> str:
    return f"{IMAGES}/{session}/root"


def image_log(session: str, number: int) -> str:
    return numbered(f"{IMAGES}/{session}/log", number)


def piece(branch: str, slot: int) -> str:
    return numbered(f"{LOG}/{branch}", slot)


def merged(branch: str, level: int, first: int, last: int, id: str) -> str:
    return f"{MERGED}/{branch}/{level}-{first:010d}-{last:010d}-{id}"


def merged_range(name: str) -> tuple[int, int, int]:
    """Level, first and last slot of a unit, from its name."""
    level, first, last, _ = name.rpartition("/")[2].split("-")
    return int(level), int(first), int(last)


def writer(branch: str, number: int) -> str:
    return numbered(f"{WRITERS}/{branch}", number)


def image_files(session: str) -> str:
    """The folder of the attachments of an image's own log."""
    return f"{IMAGES}/{session}/files"


def branch_files(branch: str) -> str:
    """The folder of the attachments of a branch's archived log."""
    return f"{ATTACHMENTS}/{branch}"


def files_of(piece: str) -> str:
    """The folder of the attachments of what a piece, a unit or an image's own log has, by its name.

    >>> files_of("log/ab/000000/0000000001"), files_of("images/cd/log/000000/0000000001")
    ('attachments/ab', 'images/cd/files')
    """
    kind, whose, *_ = piece.split("/")
    return image_files(whose) if kind == IMAGES else branch_files(whose)


def attachment(folder: str, name: str, number: int) -> str:
    return numbered(f"{folder}/{name}", number)
