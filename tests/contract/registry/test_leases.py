"""``renew``: what a worker still holds, and what it must let go."""

import pytest

from genqueue import keys
from genqueue.registry import attempts
from genqueue.registry.lifecycle import FINAL

from ...support.registry import KEEP_S, flush


def renew(registry, *held, lease_s=30.0):
    return registry.run(attempts.renew(held, lease_s=lease_s, keep_s=KEEP_S))


def test_a_lease_is_renewed_from_now_on(registry):
    generation_id = registry.running()
    assert renew(registry, (generation_id, 1), lease_s=100.0) == {}
    assert registry.raw.zscore(keys.LEASES, generation_id) == pytest.approx(registry.now_ms + 100_000, abs=5000)


def test_a_lease_that_ran_out_is_renewed_if_nobody_took_the_generation(registry):
    generation_id = registry.running()
    registry.lose_lease(generation_id)
    assert renew(registry, (generation_id, 1)) == {}
    assert registry.claim(generation_id, "worker-2").reason == "held"


@pytest.mark.parametrize("reason", ["gone", "superseded", *sorted(FINAL)])
def test_what_is_lost_is_named_with_its_reason_and_gets_no_lease(registry, reason):
    generation_id = registry.lost(reason)
    kept = registry.running()
    before = registry.raw.zscore(keys.LEASES, generation_id)
    assert renew(registry, (generation_id, 1), (kept, 1), lease_s=100.0) == {generation_id: reason}
    assert registry.raw.zscore(keys.LEASES, generation_id) == before
    assert registry.raw.zscore(keys.LEASES, kept) > registry.now_ms + 90_000


def test_many_leases_are_one_call(registry):
    ids = [registry.running() for _ in range(256)]
    assert renew(registry, *((each, 1) for each in ids)) == {}
    assert registry.raw.zcard(keys.LEASES) == 256


def test_a_generation_that_runs_for_longer_than_keep_s_is_not_forgotten(registry):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["a"]))
    own = [keys.generation(generation_id), keys.log(generation_id), keys.text(generation_id), keys.LEASES]
    for key in own:
        registry.raw.expire(key, 30)
    renew(registry, (generation_id, 1))
    assert [registry.raw.ttl(key) for key in own] == [pytest.approx(KEEP_S, abs=2)] * 4


def test_leases_that_were_forgotten_come_back_with_an_end(registry):
    generation_id = registry.running()
    registry.raw.delete(keys.LEASES)
    renew(registry, (generation_id, 1))
    assert registry.raw.ttl(keys.LEASES) == pytest.approx(KEEP_S, abs=2)
