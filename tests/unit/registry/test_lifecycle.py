"""The table of states; what Redis makes of it is tests/contract/registry/test_lifecycle.py's."""

from itertools import product

import pytest

from genqueue.registry.lifecycle import EDGES, FINAL, State, Transition, sources

Q, R = State.QUEUED, State.RUNNING


@pytest.mark.parametrize(
    ("transition", "expected"),
    [
        (Transition.STARTED, [Q, R]),
        (Transition.FINISHED, [R]),
        (Transition.FAILED, [Q, R]),
        (Transition.CANCELLED, [Q, R]),
        (Transition.RELEASED, [R]),
        (Transition.EXPIRED, [Q, R]),
    ],
)
def test_each_transition_leaves_only_these_states(transition, expected):
    assert sources(transition) == expected


@pytest.mark.parametrize(("state", "transition"), list(product(State, Transition)))
def test_an_edge_leads_where_its_transition_says(state, transition):
    impossible = {(Q, Transition.FINISHED), (Q, Transition.RELEASED)}
    not_to_its_own_name = {Transition.STARTED: R, Transition.RELEASED: Q, Transition.EXPIRED: State.FAILED}
    leads_to = EDGES.get((state, transition))
    if state.is_final or (state, transition) in impossible:
        assert leads_to is None
    else:
        assert leads_to == (not_to_its_own_name.get(transition) or State(transition))


def test_a_state_is_final_exactly_when_nothing_leaves_it():
    assert {state for state in State if state.is_final} == FINAL
    assert {state for state in State if not any(edge[0] is state for edge in EDGES)} == FINAL


def test_every_final_state_can_be_reached():
    assert set(EDGES.values()) == {Q, R, *FINAL}
