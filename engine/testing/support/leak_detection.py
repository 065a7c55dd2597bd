"""What a process holds and must release: threads, descriptors, sockets."""

from __future__ import annotations

import gc
import os
import select
import socket
import stat
import threading
import time

_DESCRIPTORS = "/dev/fd"  # Linux and macOS


class Leftovers:
    """What is held now; `new` says what came since."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._descriptors = descriptors()

    def new(self, wait_s: float) -> list[str]:
        """What is held now and was not then, in words; what goes within `wait_s` seconds is not counted."""
        gc.collect()  # this releases what nobody can reach any more
        deadline = time.monotonic() + wait_s
        while True:
            found = [f"the thread {thread.name!r}" for thread in threading.enumerate()
                     if thread not in self._threads and thread is not threading.current_thread()]
            found += [f"descriptor {fd}, {what}" for fd, what in sorted(descriptors().items())
                      if self._descriptors.get(fd) != what]
            if not found or time.monotonic() >= deadline:
                return found
            time.sleep(0.005)

    def new_descriptors(self) -> dict[int, str]:
        return {fd: what for fd, what in descriptors().items() if self._descriptors.get(fd) != what}


def descriptors() -> dict[int, str]:
    """The open descriptors of this process, and what each is."""
    found = {}
    for name in os.listdir(_DESCRIPTORS) if os.path.isdir(_DESCRIPTORS) else ():
        fd = int(name)
        try:
            status = os.fstat(fd)
        except OSError:  # the listing's own
            continue
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            found[fd] = f"{stat.filemode(status.st_mode)} {status.st_dev}:{status.st_ino}"
    return found


def network_sockets(fds: dict[int, str]) -> dict[int, str]:
    """Those of `fds` that are sockets of a network, and the state of each: listening or not, shut or not."""
    found = {}
    for fd in fds:
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            with socket.socket(fileno=os.dup(fd)) as sock:
                if sock.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) if hasattr(
                    socket, "SO_ACCEPTCONN") else 0
                poll = select.poll()
                poll.register(sock, select.POLLHUP | getattr(select, "POLLRDHUP", 0))
                shut = bool(poll.poll(0)) and bool(listens or sock.type == socket.SOCK_STREAM)
                found[fd] = f"{'listening' if listens else 'not listening'}, {'shut' if shut else 'open'}"
        except OSError:  # closed meanwhile
            continue
    return found
