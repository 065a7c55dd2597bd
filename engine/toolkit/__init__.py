"""What the kit gives to engine authors: a state file, an image over plain files, a transaction of keyed changes, a
digest.

None of it is needed to write an engine; each piece saves a simple one from getting a crash point wrong. A call that
finds no room raises `DiskFull`, and has changed nothing.

- A *state file* is replaced whole and durably, so that it always holds one state at one position: an engine whose
  state is one such file is atomic. With an empty body it is the document that says where an engine's other files are.
- A *file image* holds its files open, so that they may be replaced or deleted while they are copied, or has a directory
  of its own with links or copies. Files that are replaced give a stable image; files that are written in place give a
  moving one.
- A *keyed transaction* collects what a transaction sets, by key; its payload is those after-images and so is absolute.
- A *seal* is a checksum over a key and its value, for engines whose library has none.
"""

from __future__ import annotations

from .digest import unordered_digest as unordered_digest
from .file_image import FileImage as FileImage
from .keyed_transaction import KeyedTransaction as KeyedTransaction
from .keyed_transaction import changes_of as changes_of
from .state_file import read_state as read_state
from .state_file import write_state as write_state
