"""The members' protocol, in every state within bounds; and each rule, which something goes wrong without."""

from __future__ import annotations

import pytest

from holdfast.engine.testing.support.profiles import current_profile
from holdfast.replay.simulation.model.explore import Violation, explore
from holdfast.replay.simulation.model.protocol import Bounds, Fault, initial, steps

SOUND = [
    (Bounds(epochs=2, transactions=2, crashes=1), 50_000),
    (Bounds(epochs=2, transactions=1, change=((0, 1), (0, 1, 2))), 30_000),
]
"""What is searched in every run, and at least how many states that has."""
SOUND_IN_CI = [
    (Bounds(epochs=2, transactions=1, change=((0, 1, 2), (2,))), 40_000),
]
"""What CI searches besides."""
DEEPER = [Bounds(epochs=4, transactions=0), Bounds(epochs=3, transactions=1),
          Bounds(epochs=3, transactions=1, crashes=1), Bounds(epochs=4, transactions=2, crashes=1),
          Bounds(epochs=3, transactions=2, crashes=2),
          Bounds(epochs=3, transactions=1, crashes=1, change=((0, 1), (0, 1, 2)))]
"""What is searched at night."""
SMALL = Bounds(epochs=2, transactions=1, crashes=1)
OF_FAULT = {
    Fault.COUNTS_OLDER_RECORDS: Bounds(epochs=4, transactions=0),
    Fault.CHANGES_IN_ONE_STEP: Bounds(epochs=2, transactions=1, change=((0, 1, 2), (2,))),
    Fault.ENDS_A_CHANGE_EARLY: Bounds(epochs=2, transactions=1, change=((0, 1, 2), (2,))),
}
CAUGHT_BY = {
    Fault.SHOWS_WITHOUT_MATCH: "everything that is shown is a prefix of one history",
    Fault.REUSES_AN_EPOCH: "everything that is shown is a prefix of one history",
    Fault.COMPARES_TOO_EARLY: "what was shown is not cut",
}
PUBLISHED = "a leader has everything that was published"


@pytest.mark.parametrize(("bounds", "least"), SOUND + (SOUND_IN_CI if current_profile().name != "default" else []),
                         ids=lambda value: str(value)[:70])
def test_the_protocol_is_right_in_every_state(bounds: Bounds, least: int) -> None:
    explored = explore(initial(bounds), steps(bounds))
    print(f"{bounds}: {explored}")
    assert explored.complete
    assert explored.states > least


@pytest.mark.skipif(current_profile().name != "nightly", reason="it takes hours")
@pytest.mark.parametrize("bounds", DEEPER, ids=str)
def test_the_protocol_is_right_further_on(bounds: Bounds) -> None:
    print(f"{bounds}: {explore(initial(bounds), steps(bounds), most_states=20_000_000)}")


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name)
def test_without_a_rule_something_goes_wrong(fault: Fault) -> None:
    bounds = OF_FAULT.get(fault, SMALL)
    with pytest.raises(Violation) as found:
        explore(initial(bounds), steps(bounds, fault))
    assert found.value.invariant == CAUGHT_BY.get(fault, PUBLISHED), found.value
    assert 5 < len(found.value.trace) < 20
    assert f"{len(found.value.trace):>3}. {found.value.trace[-1]}" in str(found.value)
