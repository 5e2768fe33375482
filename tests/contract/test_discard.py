"""``discard``: doorbells of what has ended go, and nothing else does."""

import base64
import json
import uuid

import pytest

from genqueue import calls, keys
from genqueue.doorbell import doorbell_message
from genqueue.lifecycle import FINAL, State


def discard(registry):
    return registry.run(calls.discard("default"))


def plain_message(generation_id, prompt="What's NLP?"):
    """What a Celery producer sends that does not know this library."""
    message = json.loads(doorbell_message(generation_id, "default", 5))
    body = [[], {"prompt": prompt}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    return json.dumps({**message, "body": base64.b64encode(json.dumps(body).encode()).decode()})


@pytest.mark.parametrize("state", State)
def test_only_what_has_ended_loses_its_doorbell(registry, state):
    generation_id = registry.into(state)
    waits = registry.submit()
    gone = [generation_id] if state in FINAL else []
    assert [found for found, _ in discard(registry)] == gone
    assert registry.doorbells() == [each for each in (generation_id, waits) if each not in gone]
    assert discard(registry) == []


def test_a_cancel_that_nobody_was_answered_is_told_once(registry):
    cancelled, finished = registry.submit(), registry.into(State.FINISHED)
    registry.finish(registry.cancelled(cancelled))
    assert dict(discard(registry)) == {cancelled: True, finished: False}
    registry.raw.rpush(keys.doorbell("default", 5), doorbell_message(cancelled, "default", 5))
    assert discard(registry) == [(cancelled, False)]


def test_it_is_looked_for_at_every_priority(registry):
    ids = [registry.submit(priority=priority) for priority in keys.PRIORITIES]
    for generation_id in ids:
        registry.finish(registry.cancelled(generation_id))
    assert [found for found, _ in discard(registry)] == ids
    assert not any(registry.doorbells(priority) for priority in keys.PRIORITIES)


def test_what_is_forgotten_is_rung_for_no_more_but_a_message_with_a_request_stays(registry):
    """The request of a plain Celery message is registered when a worker takes it."""
    forgotten, plain = registry.submit(), str(uuid.uuid4())
    registry.raw.delete(keys.generation(forgotten))
    registry.raw.lpush(keys.doorbell("default", 5), plain_message(plain))
    assert discard(registry) == [(forgotten, False)]
    assert registry.doorbells() == [plain]


def test_a_message_with_a_request_stays_also_when_its_generation_has_ended(registry):
    """Its worker answers it: "known", or that it was cancelled."""
    cancelled = registry.submit()
    registry.finish(registry.cancelled(cancelled))
    registry.raw.delete(keys.doorbell("default", 5))
    registry.raw.lpush(keys.doorbell("default", 5), plain_message(cancelled))
    assert discard(registry) == []
    assert registry.doorbells() == [cancelled]


@pytest.mark.parametrize("odd", ["two words", "x:log", "x:text", "%1{id}", "ü", "a/b", "x" * 513])
def test_an_id_that_is_none_of_ours_is_left_to_the_consumer(registry, odd):
    message = doorbell_message(odd, "default", 5)
    registry.raw.lpush(keys.doorbell("default", 5), message)
    assert discard(registry) == []
    assert registry.raw.lrange(keys.doorbell("default", 5), 0, -1) == [message]


@pytest.mark.parametrize(
    "changed", [("priority", 4), ("body_encoding", "utf-8"), ("delivery_tag", "another"), ("new", 1)]
)
def test_what_is_no_doorbell_to_the_letter_is_left_to_the_consumer(registry, changed):
    ended = registry.into(State.FINISHED)
    registry.raw.delete(keys.doorbell("default", 5))
    message = json.loads(doorbell_message(ended, "default", 5))
    message["properties"] |= dict([changed])
    registry.raw.lpush(keys.doorbell("default", 5), json.dumps(message, separators=(",", ":")))
    assert discard(registry) == []


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"garbage", id="no-json"),
        pytest.param(b"\xff\xfe", id="no-text"),
        pytest.param(b"[" * 5000 + b"]" * 5000, id="deep"),
        pytest.param(b"17", id="a-number"),
        pytest.param(b'{"headers": 5}', id="no-headers"),
        pytest.param(b'{"headers": {"id": 5}}', id="no-id"),
        pytest.param(b'{"headers": {"id": "x:log"}, "body": {}}', id="another-key"),
    ],
)
def test_garbage_is_left_to_those_who_count_it(registry, entry):
    """Celery's consumer drops it, and says so."""
    ended = registry.into(State.FINISHED)
    registry.raw.rpush(keys.doorbell("default", 5), entry)
    registry.raw.set("genqueue:generation:x:log", "no hash", ex=60)
    assert [found for found, _ in discard(registry)] == [ended]
    assert registry.raw.lrange(keys.doorbell("default", 5), 0, -1) == [entry]


def test_a_list_that_is_none_hides_no_other(registry):
    ended = registry.into(State.FINISHED)
    registry.raw.set(keys.doorbell("default", 0), "no list")
    assert [found for found, _ in discard(registry)] == [ended]


def test_hundreds_go_a_hundred_at_a_time_and_those_that_wait_among_them_stay(registry):
    waits = []
    for number in range(250):
        generation_id = registry.submit()
        if number % 50 == 7:
            waits.append(generation_id)
        else:
            registry.finish(registry.cancelled(generation_id))
    found = []
    while more := discard(registry):
        assert len(more) <= 100
        found += more
    assert len(found) == 245
    assert registry.doorbells() == waits


def test_much_of_others_is_not_looked_through_at_once(registry):
    """A script holds everybody up while it runs."""
    for _ in range(3):
        registry.raw.lpush(keys.doorbell("default", 5), plain_message(str(uuid.uuid4()), "x" * 600_000))
    behind = registry.into(State.FINISHED)
    assert discard(registry) == []
    assert registry.doorbells()[-1] == behind
