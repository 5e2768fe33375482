"""What all share lives as long as the longest ``keep_s`` of those who use it."""

import pytest

from genqueue import keys
from genqueue.registry import attempts, fleet

from ...support.registry import KEEP_S, flush

SHARED = (
    keys.waiting("default"),
    keys.newest_claimed("default"),
    keys.LEASES,
    keys.DELAYED,
    keys.DEADLINES,
    keys.RUNG,
    keys.SWEPT,
    keys.DEAD,
    keys.GENERATORS,
    keys.PLACES,
)
SHORT_S = 60


def use_everything(registry, prefix):
    """Write to every key that generations share, and leave something in each."""
    facts, places = {"default": {"max_queue_depth": 10}}, {"default": ["here"]}
    registry.run(fleet.announce(facts, prefix, {}, worker_s=30, keep_s=registry.keep_s, places=places))
    registry.submit(f"{prefix}-waits", deadline_s=500)
    registry.running(generation_id=f"{prefix}-runs", deadline_s=500)
    registry.release(flush(registry.running(generation_id=f"{prefix}-delayed", deadline_s=500), 1), delay_s=500)
    registry.release(flush(registry.running(generation_id=f"{prefix}-again"), 1))
    registry.finish(registry.failed(registry.running(generation_id=f"{prefix}-dead")))
    registry.lose_lease(registry.running(generation_id=f"{prefix}-lost", deadline_s=500))
    registry.sweep()
    registry.run(attempts.renew([(f"{prefix}-runs", 1)], lease_s=30.0, keep_s=registry.keep_s))


def lives(registry):
    return {key: registry.raw.ttl(key) for key in SHARED}


def test_who_keeps_for_a_shorter_time_ends_nothing_of_others(registry):
    use_everything(registry, "theirs")
    assert lives(registry) == {key: pytest.approx(KEEP_S, abs=2) for key in SHARED}
    registry.keep_s = SHORT_S
    use_everything(registry, "hasty")
    assert lives(registry) == {key: pytest.approx(KEEP_S, abs=2) for key in SHARED}


def test_who_keeps_for_a_longer_time_is_given_it(registry):
    registry.keep_s = SHORT_S
    use_everything(registry, "hasty")
    assert lives(registry) == {key: pytest.approx(SHORT_S, abs=2) for key in SHARED}
    registry.keep_s = KEEP_S
    use_everything(registry, "theirs")
    assert lives(registry) == {key: pytest.approx(KEEP_S, abs=2) for key in SHARED}
