"""Redis's clock goes back, or a master takes over whose clock is behind: what lies too far ahead is not believed.

What a clock that went back leaves is written here: moments that lie ahead by as much.
"""

import pytest

from genqueue import calls, keys
from genqueue.calls import Claim, Found, NotClaimed

from .conftest import KEEP_S, LEASE_S, Registry, flush

BACK_S = 3600.0
QUEUE_MOMENTS = ["at", "leases_from", "turn of the clock"]


def turn_back(registry: Registry, seconds: float = BACK_S) -> None:
    """Let Redis's clock have gone back: all that is stored lies so much further ahead."""
    raw = registry.raw
    for place in (keys.LEASES, keys.DELAYED, keys.DEADLINES, keys.RUNG):
        for generation_id, _ in raw.zrange(place, 0, -1, withscores=True):
            raw.zincrby(place, seconds * 1e3, generation_id)
    for place in raw.scan_iter(keys.waiting("*")):
        for generation_id, _ in raw.zrange(place, 0, -1, withscores=True):
            raw.zincrby(place, seconds * 1e5, generation_id)
    for place in raw.scan_iter(keys.newest_claimed("*")):
        for priority, served in raw.hgetall(place).items():
            raw.hset(place, priority, f"{float(served) + seconds * 1e5:.0f}")
    for place in raw.scan_iter(keys.generation("*")):
        if raw.type(place) == b"hash":
            for field in ("submitted_at", "deadline_at", "started_at"):
                if (moment := raw.hget(place, field)) is not None:
                    raw.hset(place, field, f"{float(moment) + seconds:.6f}")
    for field, moment in raw.hgetall(keys.SWEPT).items():
        if field.decode() in QUEUE_MOMENTS or field.startswith(b"queue "):
            raw.hset(keys.SWEPT, field, f"{float(moment) + seconds:.6f}")


def swept(registry: Registry, lease_s: float = LEASE_S) -> Found:
    """What a sweep finds that comes when it comes: what was swept before is as it is stored."""
    found: Found = registry.run(calls.sweep(["default"], lease_s=lease_s, keep_s=KEEP_S)).found
    return found


def ahead_s(registry: Registry, place: str, generation_id: str) -> float:
    """How far ahead something lies."""
    return (registry.raw.zscore(place, generation_id) - registry.now_ms) / 1e3


def settle(registry: Registry) -> None:
    """Let sweeps have come and gone for long."""
    swept(registry)
    registry.raw.hset(keys.SWEPT, "leases_from", 0)
    swept(registry)


@pytest.mark.parametrize("lease_s", [1.0, LEASE_S, 300.0])
def test_a_lease_lasts_no_longer_than_its_holders_leases_do(registry, lease_s):
    """However long, or short, the leases of the sweeper are."""
    settle(registry)
    generation_id = registry.submit()
    registry.claim(generation_id, "worker-1", lease_s=lease_s)
    turn_back(registry)
    swept(registry)
    assert ahead_s(registry, keys.LEASES, generation_id) == pytest.approx(lease_s, abs=1)


def test_one_alone_is_not_believed_either(registry):
    """As of a master that took over with a clock that is behind, but had swept by its own before."""
    settle(registry)
    generation_id = registry.running()
    registry.raw.zincrby(keys.LEASES, BACK_S * 1e3, generation_id)
    registry.raw.hset(keys.SWEPT, "turn of the clock", 0)
    swept(registry)
    assert ahead_s(registry, keys.LEASES, generation_id) == pytest.approx(LEASE_S, abs=1)


def test_a_longer_lease_of_another_worker_is_left_alone(registry):
    settle(registry)
    generation_id = registry.submit()
    registry.claim(generation_id, "worker-1", lease_s=300.0)
    registry.raw.hset(keys.SWEPT, "turn of the clock", 0)
    swept(registry, lease_s=1.0)
    assert ahead_s(registry, keys.LEASES, generation_id) == pytest.approx(300.0, abs=1)


def test_of_an_older_worker_whose_record_does_not_say_a_minute_is_believed(registry):
    settle(registry)
    generation_id = registry.submit()
    registry.claim(generation_id, "worker-1", lease_s=40.0)
    registry.raw.hset(keys.generation(generation_id), "owner", "older")  # it claimed after one that says
    swept(registry, lease_s=1.0)
    assert ahead_s(registry, keys.LEASES, generation_id) == pytest.approx(40.0, abs=1)
    turn_back(registry)
    swept(registry, lease_s=1.0)
    assert ahead_s(registry, keys.LEASES, generation_id) == pytest.approx(60.0, abs=1)


def test_who_died_when_the_clock_went_back_is_taken_over_one_lease_later(registry):
    settle(registry)
    generation_id = registry.running()
    turn_back(registry)
    swept(registry)
    registry.lose_lease(generation_id)  # one lease later
    assert swept(registry).astray == [generation_id]
    assert isinstance(registry.claim(generation_id, "worker-2"), Claim)


def test_whoever_lives_renews_what_was_not_believed(registry):
    settle(registry)
    generation_id = registry.running()
    turn_back(registry)
    swept(registry)
    assert registry.run(calls.renew([(generation_id, 1)], lease_s=LEASE_S, keep_s=KEEP_S, owner="worker-1")) == {}
    assert swept(registry).astray == []


@pytest.mark.parametrize("delay_s", [0.5, 30.0, 300.0])
def test_a_retry_waits_no_longer_than_it_was_to(registry, delay_s):
    settle(registry)
    generation_id = registry.running()
    registry.release(flush(generation_id, 1), delay_s=delay_s)
    turn_back(registry)
    swept(registry)
    assert ahead_s(registry, keys.DELAYED, generation_id) == pytest.approx(delay_s, abs=0.5)


def test_a_delay_of_which_nobody_says_how_long_it_is_is_bounded_too(registry):
    settle(registry)
    generation_id = registry.running()
    registry.release(flush(generation_id, 1), delay_s=30.0)
    registry.raw.hdel(keys.generation(generation_id), "delay")
    turn_back(registry, 86_400.0)
    swept(registry)
    assert ahead_s(registry, keys.DELAYED, generation_id) == pytest.approx(3600.0, abs=1)


@pytest.mark.parametrize("is_old", [False, True], ids=["", "of-an-older-producer"])
@pytest.mark.parametrize("was", ["queued", "released"])
def test_a_deadline_passes_no_later_than_when_it_had_been_set_now(registry, is_old, was):
    settle(registry)
    generation_id = registry.submit(deadline_s=20.0)
    if is_old:
        registry.raw.hdel(keys.generation(generation_id), "deadline_s")
    if was == "released":
        registry.claim(generation_id)
        registry.release(flush(generation_id, 1))
    turn_back(registry)
    swept(registry)
    assert ahead_s(registry, keys.DEADLINES, generation_id) == pytest.approx(20.0, abs=1)
    swept(registry)  # once more: it does not move on
    claim = registry.claim(generation_id)
    assert claim.deadline_at - claim.answered_at == pytest.approx(20.0, abs=1)


@pytest.mark.parametrize("is_old", [False, True], ids=["", "of-an-older-producer"])
def test_an_attempt_is_told_of_no_deadline_that_lies_too_far_ahead(registry, is_old):
    generation_id = registry.submit(deadline_s=20.0)
    if is_old:
        registry.raw.hdel(keys.generation(generation_id), "deadline_s")
    turn_back(registry)
    claim = registry.claim(generation_id)
    assert claim.deadline_at - claim.answered_at == pytest.approx(20.0, abs=0.5)
    registry.raw.hincrbyfloat(keys.generation(generation_id), "deadline_at", -19.9)  # 19.9 s later
    registry.lose_lease(generation_id)
    again = registry.claim(generation_id, "worker-2")
    assert again == NotClaimed("expired") or again.deadline_at - again.answered_at < 0.5


def test_a_deadline_that_is_met_is_left_alone(registry):
    settle(registry)
    ids = [registry.submit(deadline_s=seconds) for seconds in (5.0, 1e6)]
    before = [registry.raw.zscore(keys.DEADLINES, each) for each in ids]
    registry.raw.hset(keys.SWEPT, "turn of the clock", 0)
    swept(registry)
    assert [registry.raw.zscore(keys.DEADLINES, each) for each in ids] == pytest.approx(before, abs=2)


def test_all_are_looked_at_when_the_clock_went_back_however_many(registry):
    settle(registry)
    ids = [registry.submit(deadline_s=20.0) for _ in range(520)]
    turn_back(registry)
    swept(registry)
    assert max(ahead_s(registry, keys.DEADLINES, each) for each in ids) < 21.0


def test_a_lost_doorbell_is_looked_for_all_the_same(registry):
    """Its place in the queue, and when it was rung for last, lie ahead."""
    settle(registry)
    generation_id = registry.submit()
    registry.raw.delete(keys.doorbell("default", 5))
    registry.raw.zadd(keys.RUNG, {generation_id: registry.now_ms})
    registry.raw.expire(keys.RUNG, 60)
    turn_back(registry)
    found = []
    for _ in range(2):
        found += swept(registry).astray
        registry.raw.hset(keys.SWEPT, "queue default", 0)
        for each, _ in registry.raw.zrange(keys.RUNG, 0, -1, withscores=True):
            registry.raw.zincrby(keys.RUNG, -3000, each)  # 3 s later
    assert generation_id in found


def test_how_far_a_queue_was_served_is_told_anew(registry):
    registry.claim(registry.submit())
    turn_back(registry)
    generation_id = registry.submit()
    place = registry.raw.zscore(keys.waiting("default"), generation_id)
    registry.claim(generation_id)
    assert float(registry.raw.hget(keys.newest_claimed("default"), "5")) == place


def test_the_grace_after_an_outage_is_not_longer_for_it(registry):
    swept(registry)  # the first of all: a grace begins
    turn_back(registry)
    generation_id = registry.running()
    registry.lose_lease(generation_id)
    assert swept(registry).astray == [generation_id]


def test_a_worker_that_died_is_forgotten_as_soon_as_any(registry):
    facts, field = {"default": {"max_queue_depth": -1}}, "default 127.0.0.1"
    call = calls.announce(facts, "gone", {}, worker_s=30.0, keep_s=KEEP_S, places={"default": ["127.0.0.1"]})
    registry.run(call)
    ahead = registry.now_ms / 1e3 + BACK_S
    registry.raw.hset(keys.WORKERS, "gone", f'{{"announced_at":{ahead:.6f},"generators":{{}}}}')
    registry.raw.hset(keys.PLACES, "other 127.0.0.1", f"{ahead:.6f}")
    registry.run(calls.announce(facts, "me", {}, worker_s=30.0, keep_s=KEEP_S, places={}))
    told = {worker.name: worker.announced_at for worker in registry.run(calls.read_workers())}
    assert told["gone"] == pytest.approx(registry.now_ms / 1e3, abs=2)
    assert float(registry.raw.hget(keys.PLACES, "other 127.0.0.1")) == pytest.approx(registry.now_ms / 1e3, abs=2)
    assert registry.raw.hexists(keys.PLACES, field)
