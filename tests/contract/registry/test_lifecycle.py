"""The Lua scripts agree with the table of states, edge by edge and non-edge by non-edge."""

from itertools import product

import pytest

from genqueue.registry import reading
from genqueue.registry.attempts import Claim
from genqueue.registry.lifecycle import EDGES, State, Transition

from ...support.registry import flush


@pytest.mark.parametrize(("state", "transition"), list(product(State, Transition)))
def test_redis_allows_exactly_the_edges_of_the_table(registry, state, transition):
    generation_id = registry.into(state)
    attempt = registry.run(reading.read_record(generation_id)).attempt
    if transition is Transition.STARTED:
        if state is State.RUNNING:
            registry.lose_lease(generation_id)
        went = isinstance(registry.claim(generation_id, "worker-2"), Claim)
    elif transition is Transition.RELEASED:
        went = registry.release(flush(generation_id, 1, attempt=attempt)) == "ok"
    else:
        end = {
            Transition.FINISHED: lambda: registry.finished(generation_id, attempt=attempt),
            Transition.FAILED: lambda: registry.failed(generation_id, attempt),
            Transition.CANCELLED: lambda: registry.cancelled(generation_id),
            Transition.EXPIRED: lambda: registry.expired(generation_id, attempt),
        }[transition]()
        events_before = registry.events(generation_id)
        registry.finish(end)
        went = registry.events(generation_id) != events_before
    leads_to = EDGES.get((state, transition))
    assert went is (leads_to is not None)
    assert registry.run(reading.read_record(generation_id)).state is (leads_to or state)
