"""``discard``: doorbells of what has ended go, and nothing else does."""

import base64
import json
import uuid

import pytest

from genqueue import keys
from genqueue.registry import sweeping
from genqueue.registry.attempts import NotClaimed
from genqueue.registry.lifecycle import FINAL, State
from genqueue.registry.submitting import doorbell_message

from ...support.registry import KEEP_S


def discard(registry, *told, owner="worker-1", generator="default"):
    return registry.run(sweeping.discard(generator, owner=owner, told=told, keep_s=KEEP_S))


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


def cancelled(registry, **fields):
    """One that was cancelled while it waited."""
    generation_id = registry.submit(**fields)
    registry.finish(registry.cancelled(generation_id))
    return generation_id


def test_a_cancel_that_nobody_was_told_of_is_told_by_one_who_says_so(registry):
    untold, finished = cancelled(registry), registry.into(State.FINISHED)
    assert dict(discard(registry)) == {untold: True, finished: False}
    assert discard(registry) == [(untold, True)]  # the answer got lost, and is asked for again
    assert discard(registry, owner="worker-2") == []
    assert registry.claim(untold, "worker-2") == NotClaimed("cancelled")
    assert discard(registry, untold) == []
    assert discard(registry) == []
    registry.raw.rpush(keys.doorbell("default", 5), doorbell_message(untold, "default", 5))
    assert discard(registry) == [(untold, False)]


def test_an_answer_that_got_lost_is_there_though_another_took_the_doorbell_and_looked(registry):
    untold = cancelled(registry)
    registry.raw.rpush(keys.doorbell("default", 5), doorbell_message(untold, "default", 5))  # rung for twice
    assert discard(registry) == [(untold, True)]
    assert registry.claim(untold, "worker-2") == NotClaimed("cancelled")
    assert discard(registry, owner="worker-2") == []
    assert discard(registry) == [(untold, True)]


def test_a_claim_that_is_sent_again_has_the_same_answer_until_its_owner_told(registry):
    untold = cancelled(registry)
    for _ in range(2):
        assert registry.claim(untold) == NotClaimed("cancelled", is_untold=True)
    assert registry.claim(untold, "worker-2") == NotClaimed("cancelled")
    # It is the claim's to tell, of one queue or another: to its owner too.
    assert discard(registry, generator="other") == []
    assert discard(registry) == [(untold, False)]
    assert registry.claim(untold) == NotClaimed("cancelled", is_untold=True)
    assert discard(registry, untold, generator="other") == []
    assert registry.claim(untold) == NotClaimed("cancelled")


def test_what_is_told_of_one_queue_is_no_other_queues(registry):
    registry.raw.delete(keys.doorbell("default", 5))
    ids = {name: cancelled(registry, generator=name) for name in ("default", "other")}
    assert [discard(registry, generator=name) for name in ids] == [[(each, True)] for each in ids.values()]
    assert [discard(registry, generator=name) for name in ids] == [[(each, True)] for each in ids.values()]
    assert discard(registry, *ids.values()) == discard(registry, generator="other") == []


def test_what_was_said_to_be_told_twice_or_of_nothing_harms_nobody(registry):
    untold = cancelled(registry)
    assert discard(registry, "nothing", untold) == [(untold, True)]
    assert discard(registry, untold, "nothing") == discard(registry, untold) == []
    assert registry.raw.ttl(keys.untold("worker-1")) in range(-2, KEEP_S + 1)


def test_a_key_of_another_type_in_its_place_stops_nobody(registry):
    registry.raw.set(keys.untold("worker-1"), "of another type", ex=60)
    claimed, found = cancelled(registry), cancelled(registry)
    assert registry.claim(claimed) == NotClaimed("cancelled", is_untold=True)
    discard(registry, claimed)
    assert registry.doorbells() == []
    assert found not in [each for each, _ in discard(registry)]


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
    more = []
    while more := discard(registry, *(each for each, _ in more)):
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
