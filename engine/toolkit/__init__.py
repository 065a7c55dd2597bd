"""Tools for engine authors: a state file, an image over plain files, a transaction of keyed changes, a digest.

You can write an engine without them; each piece keeps a simple engine from getting a crash point wrong. A call that
finds no room raises `DiskFull`, and has changed nothing.

- A *state file* is replaced whole and durably, so it always holds one state at one position. An engine whose state is
  one such file is atomic. With an empty body, the file records the position of an engine's other files.
- A *file image* either holds its files open, so that they may be replaced or deleted while they are copied, or has its
  own directory with links or copies. Files that are replaced give a stable image; files that are written in place give
  a moving one.
- A *keyed transaction* collects new values by key. Its payload is these after-images, so it is absolute.
- A *seal* is a checksum over a key and its value, for engines whose library has none.
"""

from __future__ import annotations

from .digest import unordered_digest as unordered_digest
from .file_image import FileImage as FileImage
from .keyed_transaction import KeyedTransaction as KeyedTransaction
from .keyed_transaction import changes_of as changes_of
from .state_file import read_state as read_state
from .state_file import write_state as write_state
