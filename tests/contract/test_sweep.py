"""``sweep`` and ``ring``: what nobody looks after is found, by one sweeper, and is the next to be taken.

Nothing here waits: time passes by writing older scores.
"""

import pytest

from genqueue import calls, keys
from genqueue.calls import Found

from .conftest import KEEP_S, flush, only_real_redis

NOTHING = Found([], [])
MINUTE_S = 60.0


def rests(registry, generation_id, seconds):
    """Have a queued generation wait ``seconds`` longer than it does."""
    registry.raw.zincrby(keys.waiting("default"), -seconds * 1e5, generation_id)  # 10 us each


def lose_doorbells(registry):
    registry.raw.delete(*(keys.doorbell("default", priority) for priority in keys.PRIORITIES))


def left_by_a_dead_worker(registry):
    generation_id = registry.running()
    registry.lose_lease(generation_id)
    return generation_id


def due_after_a_backoff(registry):
    generation_id = registry.running()
    registry.release(flush(generation_id, 1), delay_s=5.0)
    registry.raw.zadd(keys.DELAYED, {generation_id: registry.now_ms - 1})
    return generation_id


def without_a_list(registry):
    generation_id = registry.submit()
    rests(registry, generation_id, MINUTE_S)
    lose_doorbells(registry)
    return generation_id


def passed_over(registry):
    generation_id = registry.submit()
    rests(registry, generation_id, MINUTE_S)
    registry.running()  # younger, and its doorbell was heard
    return generation_id


ASTRAY = [left_by_a_dead_worker, due_after_a_backoff, without_a_list, passed_over]
named = pytest.mark.parametrize("lose", ASTRAY, ids=lambda lose: lose.__name__)


@named
def test_what_is_astray_is_found(registry, lose):
    generation_id = lose(registry)
    assert registry.sweep() == Found([generation_id], [])


@named
def test_one_of_ten_sweepers_finds_it(registry, lose):
    ids = {lose(registry) for _ in range(3)}
    found = [registry.sweep().astray for _ in range(10)]
    assert set(found[0]) == ids
    assert found[1:] == [[]] * 9


@named
def test_it_is_found_again_if_nobody_has_come_for_it(registry, lose):
    generation_id = lose(registry)
    registry.sweep()
    registry.ring(generation_id)
    lose_doorbells(registry)  # the sweeper died between the two, or who was rung for
    registry.raw.zincrby(keys.RUNG, -4900, generation_id)
    assert registry.sweep() == NOTHING
    registry.raw.zincrby(keys.RUNG, -200, generation_id)
    assert registry.sweep() == Found([generation_id], [])


@named
def test_what_was_claimed_again_is_not_astray(registry, lose):
    generation_id = lose(registry)
    registry.sweep()
    registry.ring(generation_id)
    assert registry.claim(generation_id, "worker-2").attempt >= 1
    registry.raw.delete(keys.RUNG)
    assert registry.sweep() == NOTHING


@named
def test_what_is_rung_for_is_the_next_to_be_taken(registry, lose):
    generation_id = lose(registry)
    found = registry.sweep().astray
    for _ in range(3):
        registry.submit()
    registry.ring(*found)
    assert registry.doorbells()[0] == generation_id


def test_what_is_looked_after_is_left_alone(registry):
    registry.running()
    registry.submit(deadline_s=100)
    delayed = registry.running()
    registry.release(flush(delayed, 1), delay_s=5.0)
    assert registry.sweep() == NOTHING


def test_a_queue_that_nobody_serves_yet_is_left_alone(registry):
    for _ in range(3):
        rests(registry, registry.submit(), MINUTE_S)
    assert registry.sweep() == NOTHING


def test_a_doorbell_on_its_way_to_a_claim_is_left_alone(registry):
    generation_id = registry.submit()
    lose_doorbells(registry)  # popped this instant
    assert registry.sweep() == NOTHING
    rests(registry, generation_id, 1.0)
    assert registry.sweep().astray == [generation_id]


def test_a_younger_one_that_overtook_it_by_a_moment_is_no_sign_of_loss(registry):
    generation_id = registry.submit()
    rests(registry, generation_id, MINUTE_S)
    overtaker = registry.submit()
    rests(registry, overtaker, MINUTE_S - 0.5)
    registry.claim(overtaker)
    assert registry.sweep() == NOTHING


def test_a_claim_of_one_priority_says_nothing_of_another(registry):
    for priority in (0, 9):
        rests(registry, registry.submit(priority=priority), MINUTE_S)
    registry.running(priority=5)
    assert registry.sweep() == NOTHING


@pytest.mark.parametrize("priority", [0, 9])
def test_each_priority_is_looked_through(registry, priority):
    generation_id = registry.submit(priority=priority)
    rests(registry, generation_id, MINUTE_S)
    registry.running(priority=priority)
    assert registry.sweep().astray == [generation_id]


def test_lost_doorbells_are_looked_for_in_ones_own_queues_and_leases_everywhere(registry):
    lost_doorbell, lost_lease = without_a_list(registry), left_by_a_dead_worker(registry)
    lose_doorbells(registry)
    assert registry.sweep("other").astray == [lost_lease]
    assert registry.sweep("other", "default").astray == [lost_doorbell]


def test_what_was_given_back_this_instant_is_no_lost_doorbell(registry):
    """It has its old place again, before what was claimed meanwhile; but its doorbell has just been rung."""
    generation_id = registry.running()
    registry.running()
    registry.release(flush(generation_id, 1))
    rests(registry, generation_id, MINUTE_S)
    assert registry.sweep() == NOTHING


# --- deadlines -------------------------------------------------------------------------------


def expires(registry, generation_id):
    registry.raw.hset(keys.generation(generation_id), "deadline_at", f"{registry.now_ms / 1e3 - 1:.6f}")
    registry.raw.zadd(keys.DEADLINES, {generation_id: registry.now_ms - 1000})


def test_a_deadline_that_passes_in_the_queue_is_found_by_one_sweeper(registry):
    generation_id = registry.submit(deadline_s=100)
    expires(registry, generation_id)
    assert [registry.sweep() for _ in range(10)] == [Found([], [generation_id]), *[NOTHING] * 9]
    assert registry.finish(registry.expired(generation_id)) == "ok"
    assert registry.raw.zscore(keys.DEADLINES, generation_id) is None


def test_a_deadline_that_a_dying_sweeper_took_is_found_again(registry):
    generation_id = registry.submit(deadline_s=100)
    expires(registry, generation_id)
    registry.sweep()
    expires(registry, generation_id)
    registry.raw.zincrby(keys.RUNG, -5100, generation_id)
    assert registry.sweep().expired == [generation_id]


@pytest.mark.parametrize("delay_s", [0.0, 60.0])
def test_a_deadline_that_passes_after_it_was_given_back_is_found(registry, delay_s):
    generation_id = registry.running(deadline_s=100)
    registry.release(flush(generation_id, 1, ["a"]), delay_s=delay_s)
    registry.raw.zincrby(keys.RUNG, -2000, generation_id)
    expires(registry, generation_id)  # a second ago
    assert registry.sweep() == Found([], [generation_id])


def test_a_deadline_that_passes_just_after_it_was_rung_again_is_found_at_once(registry):
    generation_id = registry.submit(deadline_s=100)
    rests(registry, generation_id, MINUTE_S)
    lose_doorbells(registry)
    assert registry.sweep() == Found([generation_id], [])
    registry.ring(generation_id)
    registry.raw.zincrby(keys.RUNG, -2000, generation_id)
    expires(registry, generation_id)  # a second ago
    assert registry.sweep().expired == [generation_id]


def test_what_runs_meanwhile_does_not_expire_in_the_queue(registry):
    generation_id = registry.submit(deadline_s=100)
    expires(registry, generation_id)
    assert registry.sweep().expired == [generation_id]
    registry.raw.hset(keys.generation(generation_id), "deadline_at", f"{registry.now_ms / 1e3 + 100:.6f}")
    registry.claim(generation_id)
    assert registry.finish(registry.expired(generation_id)) == "running"


# --- what it costs, and what it forgets ------------------------------------------------------


@pytest.mark.parametrize("place", [keys.LEASES, keys.DELAYED, keys.DEADLINES, keys.RUNG])
def test_what_rested_for_longer_than_its_keys_live_is_forgotten(registry, place):
    old, young = registry.now_ms - (KEEP_S + 1) * 1e3, registry.now_ms - (KEEP_S - 60) * 1e3
    registry.raw.zadd(place, {"old": old, "young": young})
    registry.raw.expire(place, KEEP_S)
    registry.sweep()
    assert registry.raw.zscore(place, "old") is None
    assert registry.raw.zscore(place, "young") is not None


def test_what_waited_for_longer_than_its_keys_live_takes_no_room(registry):
    generation_id = registry.submit(priority=3, max_queue_depth=1)
    rests(registry, generation_id, KEEP_S + 1)
    assert registry.sweep() == NOTHING
    assert registry.submit(max_queue_depth=1)


@only_real_redis
def test_a_sweep_costs_the_same_however_many_wait(registry):
    def commands():
        registry.raw.config_resetstat()
        assert registry.sweep() == NOTHING
        stats = registry.raw.info("commandstats")
        return {name: each["calls"] for name, each in stats.items() if "resetstat" not in name}

    registry.running()
    registry.sweep()
    for _ in range(10):
        registry.submit(deadline_s=100)
    few = commands()
    for _ in range(990):
        registry.submit(deadline_s=100)
    assert commands() == few


def test_nothing_to_ring_is_no_error(registry):
    registry.run(calls.ring([]))
    assert registry.doorbells() == []
