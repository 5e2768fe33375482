"""Redis's clock goes back, or a master takes over whose clock is behind: what lies too far ahead is not believed.

What a clock that went back leaves is written here: moments that lie ahead by as much.
"""

import pytest

from genqueue import keys
from genqueue.registry import attempts, fleet, sweeping
from genqueue.registry.attempts import Claim, NotClaimed
from genqueue.registry.sweeping import Found, Swept

from ...support.registry import KEEP_S, LEASE_S, Registry, flush

BACK_S = 3600.0
QUEUE_MOMENTS = ["at", "clock", "leases_from", "turn of the clock"]
PAGE = 500
"""So many of a set one sweep looks at after the clock went back."""


def turn_back(registry: Registry, seconds: float = BACK_S) -> None:
    """Let Redis's clock have gone back: all that is stored lies so much further ahead."""
    raw = registry.raw
    moments = ("submitted_at", "deadline_at", "started_at")
    records = list(raw.scan_iter(keys.generation("*"), count=1000, _type="hash"))
    with raw.pipeline() as reading:
        for place in records:
            reading.hmget(place, moments)
        stored = dict(zip(records, reading.execute(), strict=True))
    with raw.pipeline() as writing:
        for place in (keys.LEASES, keys.DELAYED, keys.DEADLINES, keys.RUNG):
            for generation_id in raw.zrange(place, 0, -1):
                writing.zincrby(place, seconds * 1e3, generation_id)
        for place in raw.scan_iter(keys.waiting("*")):
            for generation_id in raw.zrange(place, 0, -1):
                writing.zincrby(place, seconds * 1e5, generation_id)
        for place in raw.scan_iter(keys.newest_claimed("*")):
            for priority, served in raw.hgetall(place).items():
                writing.hset(place, priority, f"{float(served) + seconds * 1e5:.0f}")
        for place, values in stored.items():
            for field, moment in zip(moments, values, strict=True):
                if moment is not None:
                    writing.hset(place, field, f"{float(moment) + seconds:.6f}")
        for field, moment in raw.hgetall(keys.SWEPT).items():
            if field.decode() in QUEUE_MOMENTS or field.startswith(b"queue "):
                writing.hset(keys.SWEPT, field, f"{float(moment) + seconds:.6f}")
        writing.execute()


def sweep(registry: Registry, lease_s: float = LEASE_S) -> Swept:
    """A sweep that comes when it comes: what was swept before is as it is stored."""
    answer: Swept = registry.run(sweeping.sweep(["default"], lease_s=lease_s, keep_s=KEEP_S))
    return answer


def swept(registry: Registry, lease_s: float = LEASE_S) -> Found:
    """What it finds."""
    return sweep(registry, lease_s).found


def next_turn(registry: Registry) -> None:
    """A third of a lease later."""
    registry.raw.hset(keys.SWEPT, "turn of the clock", 0)
    swept(registry)


def sweep_of_the_version_before(registry: Registry) -> None:
    """It writes when it swept, whatever the clock said before, and nothing of its own beside."""
    registry.raw.hset(keys.SWEPT, "at", registry.now_ms / 1e3)


def ahead_s(registry: Registry, place: str, generation_id: str) -> float:
    """How far ahead something lies."""
    return (registry.raw.zscore(place, generation_id) - registry.now_ms) / 1e3


def within(registry: Registry, place: str, seconds: float) -> int:
    """How many lie no further ahead."""
    return registry.raw.zcount(place, "-inf", registry.now_ms + seconds * 1e3)


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
    assert registry.run(attempts.renew([(generation_id, 1)], lease_s=LEASE_S, keep_s=KEEP_S, owner="worker-1")) == {}
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


@pytest.mark.parametrize("swept_first", ["by this version", "by the version before"])
def test_all_are_looked_at_when_the_clock_went_back_a_page_at_a_time(registry, swept_first):
    settle(registry)
    ids = [registry.submit(deadline_s=20.0) for _ in range(2 * PAGE + 20)]
    turn_back(registry)
    if swept_first == "by the version before":
        sweep_of_the_version_before(registry)
    looked_at = [0]
    while sweep(registry).has_more:
        looked_at.append(within(registry, keys.DEADLINES, 21.0))
    assert looked_at == [0, PAGE, 2 * PAGE]
    assert within(registry, keys.DEADLINES, 21.0) == len(ids)
    assert registry.raw.hget(keys.SWEPT, "lap of deadlines") == b""


def test_a_clock_that_goes_back_twice_is_looked_after_from_the_start(registry):
    settle(registry)
    ids = [registry.submit(deadline_s=20.0) for _ in range(PAGE + 20)]
    turn_back(registry)
    assert sweep(registry).has_more
    turn_back(registry)
    while sweep(registry).has_more:
        pass
    assert within(registry, keys.DEADLINES, 21.0) == len(ids)


@pytest.mark.parametrize("apart_ms", [0, 1], ids=["all-at-one-moment", "one-after-the-other"])
@pytest.mark.parametrize("place", [keys.LEASES, keys.DELAYED, keys.DEADLINES])
def test_where_much_lies_ahead_all_of_it_has_its_turn(registry, place, apart_ms):
    """What lies too far ahead lies behind what may."""
    settle(registry)
    first_ms = registry.now_ms + (LEASE_S + 60.0) * 1e3
    fields = {
        keys.LEASES: {"owner": "one", "lease": "3000 one"},
        keys.DELAYED: {"attempt": "1", "delay": "3000 1"},
        keys.DEADLINES: {"deadline_at": f"{first_ms / 1e3 + 60:.6f}", "deadline_s": "3000"},
    }[place]
    with registry.raw.pipeline() as pipeline:
        for number in range(350):
            pipeline.hset(keys.generation(f"may-{number:03}"), mapping=fields)
            pipeline.expire(keys.generation(f"may-{number:03}"), 60)
            pipeline.zadd(place, {f"may-{number:03}": first_ms + number * apart_ms})
        pipeline.expire(place, 60)
        pipeline.execute()
    before = dict(registry.raw.zrange(place, 0, -1, withscores=True))
    odd = "odd"  # comes last also where all have one score
    registry.raw.hset(keys.generation(odd), mapping={"owner": "one", "lease": "5 one", "attempt": "1", "delay": "5 1"})
    registry.raw.hset(keys.generation(odd), mapping={"deadline_at": f"{first_ms / 1e3 + 350:.6f}", "deadline_s": "5"})
    registry.raw.expire(keys.generation(odd), 60)
    registry.raw.zadd(place, {odd: first_ms + 350 * apart_ms})
    for _ in range(4):
        next_turn(registry)
    assert ahead_s(registry, place, odd) == pytest.approx(5.0, abs=1)
    for lap in range(2):  # and again, however often
        registry.raw.zadd(place, {odd: first_ms + 350 * apart_ms})
        registry.raw.hset(keys.generation(odd), "deadline_at", f"{first_ms / 1e3 + 350:.6f}")
        for _ in range(8):
            next_turn(registry)
        assert ahead_s(registry, place, odd) == pytest.approx(5.0, abs=1), lap
    registry.raw.zrem(place, odd)
    assert dict(registry.raw.zrange(place, 0, -1, withscores=True)) == before


@pytest.mark.parametrize("known", [None, "3", "3 1.000000", "x"], ids=["", "number", "of-another-moment", "garbage"])
def test_a_grace_of_the_version_before_is_waited_for_though_its_leases_are_longer(registry, known):
    """A worker of the version before writes when it ends, not how long it lasts."""
    settle(registry)
    generation_id = registry.running()
    registry.lose_lease(generation_id)
    until_s = registry.now_ms / 1e3 + 30.0
    registry.raw.hset(keys.SWEPT, "leases_from", f"{until_s:.6f}")
    registry.raw.hdel(keys.SWEPT, "leases_from_s")
    if known is not None:
        registry.raw.hset(keys.SWEPT, "leases_from_s", known)
    for _ in range(2):
        assert swept(registry, lease_s=1.0).astray == []
        sweep_of_the_version_before(registry)
    assert float(registry.raw.hget(keys.SWEPT, "leases_from")) == pytest.approx(until_s, abs=1e-5)
    registry.raw.hset(keys.SWEPT, "leases_from", registry.now_ms / 1e3 - 1)  # it is over
    assert swept(registry, lease_s=1.0).astray == [generation_id]


def test_a_grace_of_the_version_before_is_not_believed_for_longer_than_any(registry):
    settle(registry)
    generation_id = registry.running()
    registry.lose_lease(generation_id)
    registry.raw.hset(keys.SWEPT, "leases_from", f"{registry.now_ms / 1e3 + BACK_S:.6f}")
    registry.raw.hdel(keys.SWEPT, "leases_from_s")
    assert swept(registry, lease_s=1.0).astray == [generation_id]


def test_a_long_grace_of_ones_own_is_waited_for_by_those_with_shorter_leases(registry):
    swept(registry, lease_s=300.0)  # the first of all: a grace begins
    generation_id = registry.running()
    registry.lose_lease(generation_id)
    assert swept(registry, lease_s=1.0).astray == []
    assert swept(registry, lease_s=1.0).astray == []


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
    call = fleet.announce(facts, "gone", {}, worker_s=30.0, keep_s=KEEP_S, places={"default": ["127.0.0.1"]})
    registry.run(call)
    ahead = registry.now_ms / 1e3 + BACK_S
    registry.raw.hset(keys.WORKERS, "gone", f'{{"announced_at":{ahead:.6f},"generators":{{}}}}')
    registry.raw.hset(keys.PLACES, "other 127.0.0.1", f"{ahead:.6f}")
    registry.run(fleet.announce(facts, "me", {}, worker_s=30.0, keep_s=KEEP_S, places={}))
    told = {worker.name: worker.announced_at for worker in registry.run(fleet.read_workers())}
    assert told["gone"] == pytest.approx(registry.now_ms / 1e3, abs=2)
    assert float(registry.raw.hget(keys.PLACES, "other 127.0.0.1")) == pytest.approx(registry.now_ms / 1e3, abs=2)
    assert registry.raw.hexists(keys.PLACES, field)
