"""What a proof says today. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from .archive import Tail
from .plan import reaches
from .state import CatalogState, Entry


def stale(state: CatalogState, proof: Entry, tails: Mapping[str, Tail]) -> str:
    """Why what a rehearsal found is not true any more: its image was found damaged since, or log that it needed was
    dropped. Empty: nothing is known that speaks against it. O(images × runs)."""
    if proof["kind"] != "rehearsal":
        return ""
    verified = state.proofs.get((proof["of"], "verify"))
    if verified is not None and not verified["good"] and verified["number"] > proof["number"]:
        return "the image was found damaged since"
    if not any(reach.image.session == proof["of"] and reach.first <= proof["txid"] <= reach.last
               for reach in reaches(state, proof["branch"], tails)):
        return f"log up to transaction {proof['txid']} was dropped since"
    return ""
