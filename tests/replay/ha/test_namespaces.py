"""The faults of a network in namespaces are what they say, and nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_rig import require
from namespaces import Network, no_namespaces

pytestmark = pytest.mark.fault("network namespaces")
SPACES = Path("/var/run/netns")
SUPPORT = Path(__file__).parents[2] / "support"


@pytest.fixture
def network() -> Iterator[Network]:
    require("network namespaces", no_namespaces())
    with Network("abc") as made:
        yield made


def arrived(network: Network, sender: str, to: str, packets: int = 1) -> int:
    """How many of these packets the other one gets."""
    def open_socket() -> socket.socket:
        made = socket.socket(type=socket.SOCK_DGRAM)
        made.bind((network.address(to), 5000))
        made.settimeout(0.5)
        return made

    def send() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):  # the network is unreachable
            for _ in range(packets):
                sock.sendto(b"packet", (network.address(to), 5000))

    count = 0
    with network.call_inside(to, open_socket) as sock, contextlib.suppress(TimeoutError):
        network.call_inside(sender, send)
        while count < packets:
            sock.recv(100)
            count += 1
    return count


def test_all_reach_each_other(network: Network) -> None:
    assert all(arrived(network, one, other) for one, other in ("ab", "ba", "ac", "bc"))


def test_unplugged_it_neither_hears_nor_is_heard(network: Network) -> None:
    with network.unplugged("a"):
        assert [arrived(network, *way) for way in ("ab", "ba", "bc")] == [0, 0, 1]
    for way in ("ab", "ba"):  # the kernel takes a moment to see that the link is up
        assert any(arrived(network, *way) for _ in range(10))


def test_what_is_dropped_is_lost_in_one_direction(network: Network) -> None:
    with network.dropped([("a", "b")]):
        with network.dropped([("c", "b")]):
            assert [arrived(network, *way) for way in ("ab", "cb", "ba", "ac", "bc")] == [0, 0, 1, 1, 1]
        assert [arrived(network, *way) for way in ("ab", "cb")] == [0, 1]
    assert arrived(network, "a", "b")


def test_some_packets_are_lost_by_chance(network: Network) -> None:
    with network.lossy("b", 30):
        assert 100 < arrived(network, "a", "b", 200) < 180
    assert arrived(network, "a", "b", 200) == 200


def spaces_of(process: int) -> list[str]:
    return [name for name in os.listdir(SPACES) if f"-{process}-" in name]


def test_nothing_of_it_stays() -> None:
    """Of one that ended with a process still in it, and of one whose own process was killed."""
    require("network namespaces", no_namespaces())
    with Network("x") as other:
        inside = subprocess.Popen(other.inside("x", ["sleep", "60"]))
        assert len(spaces_of(os.getpid())) == 2
    assert inside.wait(10) == -signal.SIGKILL
    assert not spaces_of(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "import os, namespaces\n"
                           "namespaces.Network('y').__enter__()\nos.kill(os.getpid(), 9)"], cwd=SUPPORT) as killed:
        assert killed.wait(30) == -signal.SIGKILL
    assert len(spaces_of(killed.pid)) == 2
    with Network("z"):
        assert not spaces_of(killed.pid)
