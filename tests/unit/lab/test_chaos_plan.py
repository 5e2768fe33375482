"""What a chaos run breaks: the same for the same seed, everything in a short run, and never everybody at once."""

import pytest

from genqueue_lab.chaos.plan import (
    CLOCK_EVILS,
    ENDPOINT_EVILS,
    REDIS_EVILS,
    STORMS,
    WORKER_EVILS,
    WORKERS,
    Kind,
    evils,
    least_span_s,
)

SEEDS = range(200)


def test_a_seed_decides_everything():
    assert evils(7, 90.0, has_clock=True) == evils(7, 90.0, has_clock=True)
    assert evils(7, 90.0, has_clock=True) != evils(8, 90.0, has_clock=True)


def test_evils_are_in_order_and_end_with_the_submits():
    for seed in SEEDS:
        times_s = [evil.at_s for evil in evils(seed, 90.0, has_clock=True)]
        assert times_s == sorted(times_s)
        assert times_s[0] > 0 and times_s[-1] < 90.0


@pytest.mark.parametrize("has_clock", [True, False])
def test_every_kind_comes_in_the_shortest_run(has_clock):
    possible = set(Kind) - (set() if has_clock else set(CLOCK_EVILS))
    for seed in SEEDS:
        planned = evils(seed, least_span_s(has_clock=has_clock), has_clock=has_clock)
        assert {evil.kind for evil in planned} == possible


@pytest.mark.parametrize("lane", [WORKER_EVILS, REDIS_EVILS + CLOCK_EVILS, ENDPOINT_EVILS, STORMS])
def test_in_a_lane_every_kind_comes_before_any_comes_a_third_time(lane):
    for seed in SEEDS:
        come = [evil.kind for evil in evils(seed, 800.0, has_clock=True) if evil.kind in lane]
        thirds = [place for place, kind in enumerate(come) if come[:place].count(kind) == 2 + (kind is Kind.KILL)]
        assert set(come[: thirds[0]]) == set(lane)


def test_one_worker_at_least_is_left_alone():
    """10 s are enough for a replacement to start; a frozen worker wakes before."""
    for seed in SEEDS:
        hit_s = dict.fromkeys(range(WORKERS), -100.0)
        for evil in evils(seed, 120.0, has_clock=True):
            if evil.kind in WORKER_EVILS:
                assert len(evil.targets) == (2 if evil.kind is Kind.KILL_TWO else 1)
                assert all(evil.at_s - hit_s[target] >= 9.99 for target in evil.targets)
                assert any(evil.at_s - at_s >= 9.99 for place, at_s in hit_s.items() if place not in evil.targets)
                assert evil.lasts_s == 0.0 or 5.0 <= evil.lasts_s < 10.0
                hit_s.update(dict.fromkeys(evil.targets, evil.at_s))


@pytest.mark.parametrize("lane", [REDIS_EVILS + CLOCK_EVILS, ENDPOINT_EVILS], ids=["redis", "endpoints"])
def test_there_is_one_outage_of_a_kind_of_part_at_a_time(lane):
    for seed in SEEDS:
        back_s = 0.0
        for evil in evils(seed, 200.0, has_clock=True):
            if evil.kind in lane:
                assert evil.at_s >= back_s
                back_s = evil.at_s + evil.lasts_s


def test_what_forgets_forgets_no_more_than_everysec_may():
    for seed in SEEDS:
        for evil in evils(seed, 120.0, has_clock=True):
            forgets = evil.kind in (Kind.REDIS_FORGETS, Kind.REDIS_TORN, Kind.FAILOVER)
            assert (0.0 < evil.back_s < 2.0) if forgets else evil.back_s == 0.0
