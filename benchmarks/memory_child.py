"""How much memory a full backup, or an image into a repository, takes. Store and backup are both in this process, so
that all of it is counted.

Says `memory`, in bytes. `before`: what the process held with the store open and used. `peak`: the most that it held
while a backup ran, by the kernel's high-water mark, which is reset just before. `peak_own`: the same without pages of
mapped files, which the page cache can drop at any time; it is sampled, since the kernel does not record it.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

from .. import backup
from ..engine import GraphStore
from . import child


class Peak:
    """The most memory of its own that this process has held since this object was made."""

    def __init__(self) -> None:
        self.kib = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.005):
            self.kib = max(self.kib, child.memory_kib()["RssAnon"])

    def end(self) -> int:
        self._over.set()
        self._thread.join()
        return self.kib


def _image(uri: str, target: Path, *, repository: bool, verify: bool) -> int:
    """Back up. Returns the bytes of the image."""
    if not repository:
        return backup.run(uri, target, policy=backup.Policy(verify=verify)).image_bytes
    with backup.Repository.init(target) as made:
        return made.backup(uri).image_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--no-verify", action="store_true", help="leave the check of the copy out")
    parser.add_argument("--repository", action="store_true", help="take an image into a new repository")
    arguments = parser.parse_args()
    with GraphStore.open(arguments.store) as store:
        if store.backup_uri is None:
            raise SystemExit("the backup service found no free port")
        time.sleep(0.2)
        before = child.memory_kib()
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from now
        peak = Peak()
        image = _image(store.backup_uri, arguments.target, repository=arguments.repository,
                       verify=not arguments.no_verify)
        own = peak.end()
        child.say("memory", before=before["VmRSS"] << 10, peak=child.memory_kib()["VmHWM"] << 10,
                  before_own=before["RssAnon"] << 10, peak_own=own << 10, image=image)
    child.until_parent_ends()


if __name__ == "__main__":
    main()
