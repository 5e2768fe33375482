"""``finish``: the last events, the state and Celery's result, all or nothing, fenced."""

import json
from dataclasses import replace

import pytest

from genqueue import keys
from genqueue.errors import GenerationNotFoundError
from genqueue.registry import reading
from genqueue.registry.lifecycle import FINAL, State
from genqueue.wire.events import event_body

from ...support.registry import KEEP_S, LOG_TTL_S, RESULT_TTL_S, flush

ENDINGS = ["finished", "failed", "cancelled"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_end_leaves_only_what_is_still_wanted_and_for_how_long(registry, ending):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["text"], mark="first"))
    assert registry.finish(getattr(registry, ending)(generation_id)) == "ok"
    lives = {key.decode(): registry.raw.ttl(key) for key in registry.raw.scan_iter()}
    del lives[keys.doorbell("default", 5)], lives[keys.newest_claimed("default")]
    expected = {
        keys.generation(generation_id): pytest.approx(RESULT_TTL_S, abs=2),
        keys.result(generation_id): pytest.approx(RESULT_TTL_S, abs=2),
        keys.text(generation_id): pytest.approx(RESULT_TTL_S, abs=2),
        keys.log(generation_id): pytest.approx(LOG_TTL_S, abs=2),
    }
    if ending == "finished":
        del expected[keys.text(generation_id)]  # it is in the result
    if ending == "failed":  # a dead letter
        expected |= dict.fromkeys(
            (keys.DEAD, keys.generation(generation_id), keys.text(generation_id)), pytest.approx(KEEP_S, abs=2)
        )
    assert lives == expected
    assert ("request" in registry.hash(generation_id)) == (ending == "failed")
    assert registry.raw.zscore(keys.LEASES, generation_id) is None


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_end_is_published_to_readers_and_to_who_awaits_the_result(registry, ending):
    generation_id = registry.running()
    with registry.raw.pubsub() as heard:
        heard.subscribe(keys.live(generation_id), keys.result(generation_id))
        assert [heard.get_message(timeout=30)["type"] for _ in range(2)] == ["subscribe"] * 2
        registry.finish(getattr(registry, ending)(generation_id))
        messages = [heard.get_message(timeout=30) for _ in range(2)]
    published = {message["channel"].decode(): json.loads(message["data"]) for message in messages}
    (event,) = published[keys.live(generation_id)]
    assert (event["type"], event["seq"]) == (ending, 2)
    assert published[keys.result(generation_id)] == json.loads(registry.raw.get(keys.result(generation_id)))


def test_a_result_is_read_back(registry):
    generation_id = registry.running()
    registry.finish(registry.finished(generation_id, "é🦜"))
    found = registry.run(reading.read_result(generation_id))
    assert found.replies == ["é🦜"]
    assert found.meta[0]["finish_reason"] == "length"
    record = registry.run(reading.read_record(generation_id))
    assert (record.state, record.completion_tokens, record.outcome) == (State.FINISHED, 2, None)
    assert record.ended_at >= record.started_at


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
def test_another_end_has_no_result_but_a_reason_and_the_text(registry, ending):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["par"], mark="first"))
    end = getattr(registry, ending)(generation_id)
    registry.finish(replace(end, text="tial") if ending == "failed" else end)
    assert registry.run(reading.read_result(generation_id)) is None
    record = registry.run(reading.read_record(generation_id))
    assert record.outcome is not None
    assert record.outcome.error == ending
    assert registry.text(generation_id) == ("partial" if ending == "failed" else "par")


def test_the_last_flush_travels_with_the_end(registry):
    generation_id = registry.running()
    last = flush(generation_id, 1, ["all of it"], mark="first")
    registry.finish(registry.finished(generation_id, "all of it", last=last))
    assert registry.events(generation_id) == ["1.1 started", "2.1 chunk all of it", "3.1 finished"]
    assert registry.run(reading.read_record(generation_id)).first_text_at is not None


def test_a_failed_attempt_that_began_anew_keeps_only_its_own_text(registry):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["old"]))
    registry.lose_lease(generation_id)
    registry.claim(generation_id, "worker-2")
    end = replace(registry.failed(generation_id, 2, text="new"), mark="reset")
    assert registry.finish(end) == "ok"
    assert registry.text(generation_id) == "new"
    assert registry.run(reading.read_record(generation_id)).first_text_at is not None


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_second_time_is_ok_and_changes_nothing(registry, ending):
    generation_id = registry.running()
    end = getattr(registry, ending)(generation_id)
    assert registry.finish(end) == "ok"
    stored = registry.everything()
    assert registry.finish(end) == "ok"
    assert registry.everything() == stored


@pytest.mark.parametrize("first", sorted(FINAL))
@pytest.mark.parametrize("second", ENDINGS)
def test_the_first_end_stands(registry, first, second):
    generation_id = registry.into(first)
    stored = registry.everything()
    assert registry.finish(getattr(registry, second)(generation_id)) == ("ok" if first == second else first)
    assert registry.everything() == stored


@pytest.mark.parametrize("ending", ["finished", "failed"])
def test_an_attempt_that_was_taken_over_cannot_end_it(registry, ending):
    generation_id = registry.running()
    registry.lose_lease(generation_id)
    registry.claim(generation_id, "worker-2")
    stored = registry.everything()
    assert registry.finish(getattr(registry, ending)(generation_id)) == "superseded"
    assert registry.everything() == stored


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_gone_cannot_be_ended(registry, ending):
    assert registry.finish(getattr(registry, ending)("nobody's")) == "gone"
    assert registry.everything() == {}


def test_an_end_from_outside_is_told_to_the_worker_that_runs_it(registry):
    generation_id = registry.running()
    with registry.raw.pubsub() as heard:
        heard.subscribe(keys.worker("worker-1"))
        assert heard.get_message(timeout=30)["type"] == "subscribe"
        registry.finish(registry.cancelled(generation_id))
        assert heard.get_message(timeout=30)["data"].decode() == generation_id


def test_an_end_by_its_worker_is_told_nobody(registry):
    generation_id = registry.running()
    with registry.raw.pubsub() as heard:
        heard.subscribe(keys.worker("worker-1"))
        assert heard.get_message(timeout=30)["type"] == "subscribe"
        registry.finish(registry.finished(generation_id))
        registry.raw.publish(keys.worker("worker-1"), "after")
        assert heard.get_message(timeout=30)["data"] == b"after"


def test_a_cancel_in_the_queue_makes_room_and_has_no_attempt(registry):
    generation_id = registry.submit(max_queue_depth=1)
    assert registry.finish(registry.cancelled(generation_id)) == "ok"
    assert registry.submit(max_queue_depth=1) != generation_id
    assert registry.events(generation_id) == ["1.0 cancelled"]


def test_a_deadline_that_passed_in_the_queue_fails_it_without_an_attempt(registry):
    generation_id = registry.submit(deadline_s=1e-6)
    assert registry.finish(registry.failed(generation_id, None, "expired")) == "ok"
    assert registry.events(generation_id) == ["1.0 failed"]
    assert registry.run(reading.read_record(generation_id)).outcome.error == "expired"


def test_a_message_that_is_no_request_is_answered_all_the_same(registry):
    end = replace(registry.failed("alien", None, "rejected"), stillborn=True)
    assert registry.finish(end) == "ok"
    record = registry.run(reading.read_record("alien"))
    assert (record.state, record.attempt, record.outcome.error) == (State.FAILED, 0, "rejected")
    assert registry.events("alien") == ["1.0 failed"]
    stored = registry.everything()
    assert registry.finish(end) == "ok"
    assert registry.everything() == stored


@pytest.mark.parametrize("state", list(State))
def test_a_message_that_is_no_request_cannot_end_a_generation_of_that_id(registry, state):
    generation_id = registry.into(state)
    stored = registry.everything()
    end = replace(registry.failed(generation_id, None, "rejected"), stillborn=True)
    assert registry.finish(end) == ("ok" if state is State.FAILED else state)
    assert registry.everything() == stored


def test_an_end_of_thousands_of_events_goes_through(registry):
    generation_id = registry.running()
    end = registry.finished(generation_id)
    bodies = [event_body("chunk", {"text": str(number)}) for number in range(3000)]
    assert registry.finish(replace(end, bodies=[*bodies, *end.bodies])) == "ok"
    assert registry.run(reading.read_record(generation_id)).seq == 3002


def test_a_record_that_is_gone_is_not_found(registry):
    with pytest.raises(GenerationNotFoundError, match="nobody's"):
        registry.run(reading.read_record("nobody's"))
    assert registry.run(reading.read_result("nobody's")) is None
    assert registry.text("nobody's") == ""
    assert registry.run(reading.queue_position("nobody's", "default")) is None


def test_an_answer_to_what_is_no_request_leaves_another_tasks_result_alone(registry):
    registry.raw.set(keys.result("theirs"), "their result", ex=60)
    end = replace(registry.failed("theirs", attempt=None), stillborn=True)
    assert registry.finish(end) == "known"
    assert registry.raw.get(keys.result("theirs")) == b"their result"
    assert registry.raw.exists(keys.generation("theirs")) == 0
