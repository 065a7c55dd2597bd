"""The overlap rule: any set of voters that can acknowledge overlaps any set whose promises suffice to promote.

A *floor* of n copies, the primary's own included, acknowledges among N voters. Then N - n + 1 promises suffice to
promote, since any n and any N - n + 1 of N voters have one in common. That voter either acknowledged before it
promised, and its answer shows what it holds, or it promised first, and refuses what the old primary sends. This is the
flexible quorum of Howard, Malkhi and Spiegelman (2016).

While the voters are being changed, there are two sets of voters, and every rule must hold in both (joint consensus;
Ongaro, 2014). Pure functions, O(voters log voters).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

Floor = int | str
"""How many voters must hold a transaction before anybody sees it: a number, or "quorum" for a majority."""


def copies(floor: Floor, voters: Collection[str]) -> int:
    """How many of `voters` must hold a transaction: all, if there are fewer than the floor, since a cluster begins with
    one voter.

    >>> copies("quorum", "abc"), copies("quorum", "abcd"), copies(1, "abc"), copies(2, "a")
    (2, 3, 1, 1)
    """
    return len(voters) // 2 + 1 if isinstance(floor, str) else min(floor, len(voters))


def held(floor: Floor, sets: Iterable[Collection[str]], durable: Mapping[str, int]) -> int:
    """The last transaction that the floor holds in each set of voters. `durable`: up to where each voter holds the log,
    of those that have said so in this epoch.

    >>> held("quorum", ["abc"], {"a": 9, "b": 7}), held("quorum", ["abc", "abcd"], {"a": 9, "b": 7})
    (7, 0)
    """
    def in_one(voters: Collection[str]) -> int:
        need = copies(floor, voters)
        ends = sorted((durable.get(name, 0) for name in voters), reverse=True)
        return ends[need - 1] if 0 < need <= len(ends) else 0

    return min(map(in_one, sets), default=0)


def confirmed(floor: Floor, sets: Iterable[Collection[str]], names: Collection[str]) -> bool:
    """Whether `names` are enough to acknowledge in each set of voters."""
    return held(floor, sets, dict.fromkeys(names, 1)) == 1


def may_promote(floor: Floor, sets: Iterable[Collection[str]], promised: Collection[str]) -> bool:
    """Whether the promises of `promised` suffice to promote in each set of voters.

    >>> may_promote("quorum", ["abc"], "ab"), may_promote("quorum", ["abc"], "a"), may_promote(3, ["abc"], "a")
    (True, False, True)
    """
    return all(len(set(voters) & set(promised)) >= max(1, len(voters) - copies(floor, voters) + 1) for voters in sets)
