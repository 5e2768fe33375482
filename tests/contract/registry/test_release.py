"""``release``: a running generation goes back into its queue with all it has, fenced."""

import json

import pytest

from genqueue import keys
from genqueue.registry import attempts, reading
from genqueue.registry.lifecycle import FINAL, State
from genqueue.wire.events import event_body

from ...support.registry import KEEP_S, flush


def test_without_a_delay_it_is_the_next_to_be_taken(registry):
    generation_id = registry.running()
    others = [registry.submit() for _ in range(3)]
    for number, other in enumerate(others, 1):  # submitted within one millisecond, they have no order
        registry.raw.zincrby(keys.waiting("default"), number, other)
    assert registry.release(flush(generation_id, 1)) == "ok"
    assert registry.doorbells()[:2] == [generation_id, generation_id]  # nobody popped the first one
    assert [registry.run(reading.queue_position(each, "default")) for each in (generation_id, *others)] == [0, 1, 2, 3]
    assert registry.run(reading.read_record(generation_id)).state is State.QUEUED
    assert registry.raw.zscore(keys.LEASES, generation_id) is None
    assert registry.raw.zscore(keys.DELAYED, generation_id) is None
    assert registry.raw.zscore(keys.RUNG, generation_id) == pytest.approx(registry.now_ms, abs=5000)


def test_a_released_one_keeps_its_priority(registry):
    generation_id = registry.running(priority=0)
    registry.submit(priority=0)
    last = flush(generation_id, 1)
    arguments = {"delay_s": 0.0, "failure": None, "is_charged": False, "keep_s": KEEP_S}
    assert registry.run(attempts.release(last, "default", 0, **arguments)) == "ok"
    assert registry.doorbells(0)[0] == generation_id


def test_with_a_delay_nobody_rings_before_it_is_due(registry):
    generation_id = registry.running()
    registry.raw.delete(keys.doorbell("default", 5))
    assert registry.release(flush(generation_id, 1), delay_s=20.0) == "ok"
    assert registry.doorbells() == []
    assert registry.raw.zscore(keys.DELAYED, generation_id) == pytest.approx(registry.now_ms + 20_000, abs=5000)
    assert registry.run(reading.queue_position(generation_id, "default")) is None  # it keeps no place from others
    assert registry.sweep().astray == []
    registry.raw.zadd(keys.DELAYED, {generation_id: registry.now_ms - 1})
    assert registry.sweep().astray == [generation_id]
    claim = registry.claim(generation_id, "worker-2")
    assert claim.attempt == 2
    assert registry.raw.zscore(keys.DELAYED, generation_id) is None


def test_what_the_attempt_had_not_written_yet_goes_with_it(registry):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["It "], mark="first"))
    assert registry.release(flush(generation_id, 2, ["is é"], tokens=2)) == "ok"
    assert registry.text(generation_id) == "It is é"
    assert registry.events(generation_id) == ["1.1 started", "2.1 chunk It", "3.1 chunk is é"]
    assert registry.run(reading.read_record(generation_id)).completion_tokens == 2
    claim = registry.claim(generation_id, "worker-2")
    assert (claim.attempt, claim.text_so_far, claim.solid_tokens) == (2, "It is é", 2)


def test_readers_hear_of_the_last_flush_at_once(registry):
    generation_id = registry.running()
    with registry.raw.pubsub() as heard:
        heard.subscribe(keys.live(generation_id))
        assert heard.get_message(timeout=30)["type"] == "subscribe"
        registry.release(flush(generation_id, 1, ["a"]))
        (event,) = json.loads(heard.get_message(timeout=30)["data"])
    assert (event["type"], event["text"]) == ("chunk", "a")


def test_an_attempt_that_began_anew_releases_only_its_own_text(registry):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["old"], mark="first"))
    registry.lose_lease(generation_id)
    registry.claim(generation_id, "worker-2")
    last = flush(generation_id, 1, ["new"], attempt=2, mark="reset")
    last.bodies.insert(0, event_body("reset", {}))
    assert registry.release(last) == "ok"
    assert registry.text(generation_id) == "new"
    assert registry.events(generation_id)[-2:] == ["4.2 reset", "5.2 chunk new"]


@pytest.mark.parametrize("is_charged", [True, False])
def test_each_error_is_kept_and_counts_only_if_it_is_charged(registry, is_charged):
    generation_id = registry.running()
    for attempt, words in enumerate(['the "first"\n', "é", "third"], 1):
        assert registry.release(flush(generation_id, 1, attempt=attempt), failure=words, is_charged=is_charged) == "ok"
        registry.claim(generation_id)
    claim = registry.claim(generation_id)
    assert claim.failures == (3 if is_charged else 0)
    assert claim.errors == [
        {"attempt": 1, "message": 'the "first"\n'},
        {"attempt": 2, "message": "é"},
        {"attempt": 3, "message": "third"},
    ]


def test_a_hand_over_is_no_error_and_no_charge(registry):
    generation_id = registry.running()
    registry.release(flush(generation_id, 1))
    claim = registry.claim(generation_id, "worker-2")
    assert (claim.attempt, claim.failures, claim.errors) == (2, 0, [])


@pytest.mark.parametrize("reason", ["gone", "superseded", *sorted(FINAL)])
@pytest.mark.parametrize("delay_s", [0.0, 5.0])
def test_the_fence_lets_nothing_through(registry, reason, delay_s):
    generation_id = registry.lost(reason)
    stored = registry.everything()
    last = flush(generation_id, 1, ["zombie"], mark="reset")
    assert registry.release(last, delay_s=delay_s, failure="words", is_charged=True) == reason
    assert registry.everything() == stored


@pytest.mark.parametrize("delay_s", [0.0, 5.0])
def test_a_release_that_is_sent_twice_is_done_once(registry, delay_s):
    generation_id = registry.running()
    last = flush(generation_id, 1, ["a"])
    assert registry.release(last, delay_s=delay_s, failure="words", is_charged=True) == "ok"
    stored = registry.everything()
    assert registry.release(last, delay_s=delay_s, failure="words", is_charged=True) == "queued"
    assert registry.everything() == stored


@pytest.mark.parametrize("delay_s", [0.0, 5.0])
def test_its_deadline_is_looked_after_again(registry, delay_s):
    generation_id = registry.running(deadline_s=100)
    assert registry.raw.zscore(keys.DEADLINES, generation_id) is None  # its worker's business
    registry.release(flush(generation_id, 1), delay_s=delay_s)
    assert registry.raw.zscore(keys.DEADLINES, generation_id) == pytest.approx(registry.now_ms + 100_000, abs=5000)


def test_everything_that_is_released_has_an_end(registry):
    for options in ({}, {"delay_s": 5.0}):
        generation_id = registry.running(deadline_s=100)
        registry.release(flush(generation_id, 1, ["a"]), **options)
        own = [keys.generation(generation_id), keys.log(generation_id), keys.text(generation_id), keys.DEADLINES]
        assert [registry.raw.ttl(key) for key in own] == [pytest.approx(KEEP_S, abs=2)] * 4
    assert registry.raw.ttl(keys.DELAYED) == pytest.approx(KEEP_S, abs=2)


def test_a_released_generation_can_be_cancelled_and_leaves_no_place_behind(registry):
    for options in ({}, {"delay_s": 5.0}):
        generation_id = registry.running(deadline_s=100)
        registry.release(flush(generation_id, 1, ["a"]), **options)
        assert registry.finish(registry.cancelled(generation_id)) == "ok"
        for place in (keys.waiting("default"), keys.LEASES, keys.DELAYED, keys.DEADLINES, keys.RUNG):
            assert registry.raw.zscore(place, generation_id) is None
        assert registry.text(generation_id) == "a"
