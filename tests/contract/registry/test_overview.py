"""``overview``: everything at a glance, and nothing changed by looking."""

import pytest

from genqueue import keys
from genqueue.registry import dead_letters, fleet, reading

from ...support.registry import KEEP_S


def overview(registry, *generators):
    return registry.run(fleet.overview(generators))


def queue_of(registry, name="default", *generators):
    (found,) = [queue for queue in overview(registry, *generators).queues if queue.generator == name]
    return found


def announce(registry, owner="host:1:a", **limits):
    facts = {name: {"api_type": "inference_endpoints", "max_queue_depth": limit} for name, limit in limits.items()}
    registry.run(fleet.announce(facts, owner, {name: [] for name in limits}, worker_s=30.0, keep_s=KEEP_S))


def test_an_empty_redis_has_an_empty_overview(registry):
    found = overview(registry)
    assert (found.queues, found.workers, found.unreadable) == ([], [], {})
    assert (found.running, found.running_overdue, found.delayed, found.delayed_overdue, found.dead) == (0, 0, 0, 0, 0)
    assert found.at == pytest.approx(registry.now_ms / 1e3, abs=5)


def test_every_generation_is_counted_where_it_is(registry):
    announce(registry, default=7)
    for priority in (0, 9, 9):
        registry.submit(priority=priority)
    registry.running()
    dead = registry.running()
    registry.finish(registry.failed(dead))
    found = queue_of(registry)
    assert (found.waiting, found.running, found.dead) == (3, 1, 1)
    assert (found.max_queue_depth, found.workers, found.api_type) == (7, 1, "inference_endpoints")
    assert found.doorbells == 5  # of those that were claimed too: nobody popped them here


def test_the_oldest_wait_counts_whatever_its_priority(registry):
    first, _ = registry.submit(priority=9), registry.submit(priority=0)
    place = registry.raw.zscore(keys.waiting("default"), first)
    registry.raw.zadd(keys.waiting("default"), {first: place - 40 * 1e5})
    assert queue_of(registry, "default", "default").oldest_wait_s == pytest.approx(40, abs=5)


def test_generators_of_the_settings_are_there_before_a_worker_announced_them(registry):
    announce(registry, b=1)
    assert [queue.generator for queue in overview(registry, "a", "b").queues] == ["a", "b"]
    found = queue_of(registry, "a", "a")
    assert (found.max_queue_depth, found.workers, found.waiting, found.oldest_wait_s) == (None, 0, 0, None)


def test_what_nobody_looks_after_is_overdue_after_ten_seconds(registry):
    recent, old = registry.running(), registry.running()
    registry.raw.zadd(keys.LEASES, {recent: registry.now_ms - 5_000, old: registry.now_ms - 15_000})
    registry.raw.zadd(keys.DELAYED, {"a": registry.now_ms - 15_000, "b": registry.now_ms + 1_000})
    registry.raw.expire(keys.DELAYED, KEEP_S)
    found = overview(registry)
    assert (found.running, found.running_overdue, found.delayed, found.delayed_overdue) == (2, 1, 2, 1)


def test_too_many_to_be_told_apart_are_counted_together(registry, monkeypatch):
    monkeypatch.setattr(fleet, "_COUNT_LIMIT", 2)
    for _ in range(3):
        registry.running()
    found = overview(registry, "default")
    assert (found.running, found.queues[0].running, found.queues[0].dead) == (3, None, 0)


def test_a_key_of_another_type_is_named_and_hides_nothing_else(registry):
    registry.submit()
    registry.raw.set(keys.LEASES, "x", ex=KEEP_S)
    registry.raw.set(keys.doorbell("default", 3), "x")
    found = overview(registry, "default")
    assert set(found.unreadable) == {keys.LEASES, keys.doorbell("default", 3)}
    assert "WRONGTYPE" in found.unreadable[keys.LEASES]
    assert found.queues[0].waiting == 1


def test_a_name_that_is_no_text_hides_no_other(registry):
    announce(registry, default=7)
    dead = registry.running()
    registry.finish(registry.failed(dead))
    for key in (keys.GENERATORS, keys.PLACES, keys.WORKERS):
        registry.raw.hset(key, b"\xff", b"\xff")
        registry.raw.expire(key, KEEP_S)
    registry.raw.zadd(keys.DEAD, {b"\xff": 1})
    found = overview(registry)
    assert [queue.generator for queue in found.queues] == [r"\xff", "default"]
    assert [worker.name for worker in found.workers] == ["host:1:a"]
    assert [worker.name for worker in registry.run(fleet.read_workers())] == ["host:1:a"]
    assert registry.run(fleet.known_generators()) == {r"\xff", "default"}
    assert registry.run(fleet.known_places()) == {r"\xff": {""}}
    letters = registry.run(dead_letters.dead_letters(0, 10))
    assert letters == [dead, r"\xff"]
    assert [record and record.state for record in registry.run(reading.read_records(letters))] == ["failed", None]


def test_looking_changes_nothing(registry):
    announce(registry, default=7)
    registry.submit()
    registry.running()
    before = registry.everything()
    overview(registry, "default", "other")
    assert registry.everything() == before
