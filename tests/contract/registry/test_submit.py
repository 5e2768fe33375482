"""``submit``: accept and ring in one call, or say why not."""

import json

import pytest

from genqueue import keys
from genqueue.errors import IdempotencyConflictError, QueueFullError, UnknownGeneratorError
from genqueue.registry import fleet, reading
from genqueue.wire.request import GenerationRequest, read_request

from ...support.registry import KEEP_S, RESULT_TTL_S, Registry, flush


def rings(registry: Registry, priority: int = 5, generator: str = "default") -> list[str]:
    """The ids for which was rung, in the order in which Celery takes them."""
    messages = registry.raw.lrange(keys.doorbell(generator, priority), 0, -1)
    return [json.loads(message)["headers"]["id"] for message in reversed(messages)]


def test_a_submit_registers_the_request_and_rings(registry):
    before_ms = registry.now_ms
    generation_id = registry.submit("g1", prompt="é 🦜\x00\n", stop_words=["x"])
    assert generation_id == "g1"
    stored = registry.hash("g1")
    request = GenerationRequest.model_validate_json(stored.pop("request"))
    assert (request.prompt, request.stop_words) == ("é 🦜\x00\n", ("x",))
    submitted_at = float(stored.pop("submitted_at"))
    assert before_ms - 1 <= submitted_at * 1e3 <= registry.now_ms + 1
    assert stored == {
        "state": "queued",
        "generator": "default",
        "priority": "5",
        "attempt": "0",
        "seq": "0",
        "flush": "0",
    }
    assert rings(registry) == ["g1"]
    assert registry.run(reading.queue_position("g1", "default")) == 0


def test_every_key_of_a_submit_lives_as_long_as_it_should(registry):
    registry.submit("g1", idempotency_key="order-17", deadline_s=5)
    lives = {key.decode(): registry.raw.ttl(key) for key in registry.raw.scan_iter()}
    doorbell = lives.pop(keys.doorbell("default", 5))
    assert doorbell == -1  # Celery's list
    assert lives == {
        keys.generation("g1"): pytest.approx(KEEP_S, abs=2),
        keys.waiting("default"): pytest.approx(KEEP_S, abs=2),
        keys.idempotency("order-17"): pytest.approx(RESULT_TTL_S, abs=2),
        keys.DEADLINES: pytest.approx(KEEP_S, abs=2),
    }


def test_a_submit_that_is_sent_twice_is_accepted_once_and_rung_once(registry):
    assert registry.submit("g1", idempotency_key="k") == "g1"
    stored = registry.everything()
    assert registry.submit("g1", idempotency_key="k") == "g1"
    assert registry.everything() == stored


def test_a_submit_that_is_sent_again_after_its_generation_ran_changes_nothing(registry):
    generation_id = registry.running()
    stored = registry.everything()
    assert registry.submit(generation_id) == generation_id
    assert registry.everything() == stored


def test_a_second_submit_at_the_limit_still_finds_the_first(registry):
    registry.submit("g1", max_queue_depth=1)
    assert registry.submit("g1", max_queue_depth=1) == "g1"


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_full_queue_refuses_and_says_how_full_it_is(registry, limit):
    for number in range(limit):
        registry.submit(f"g{number}", max_queue_depth=limit)
    stored = registry.everything()
    with pytest.raises(QueueFullError, match=f"queue 'default' holds {limit} generations, limit {limit}") as refused:
        registry.submit("one-more", max_queue_depth=limit, idempotency_key="k")
    assert (refused.value.depth, refused.value.limit) == (limit, limit)
    assert registry.everything() == stored


def test_a_claimed_generation_makes_room(registry):
    registry.submit("g1", max_queue_depth=1)
    registry.claim("g1")
    assert registry.submit("g2", max_queue_depth=1) == "g2"


def test_one_generator_full_leaves_the_others_alone(registry):
    registry.submit("g1", max_queue_depth=1)
    assert registry.submit("g2", max_queue_depth=1, generator="other") == "g2"


def test_the_limit_that_a_worker_announced_holds_for_who_has_none(registry):
    registry.run(fleet.announce({"default": {"max_queue_depth": 1}}, "w", {}, worker_s=30, keep_s=KEEP_S))
    registry.submit("g1", max_queue_depth=None)
    with pytest.raises(QueueFullError, match="limit 1"):
        registry.submit("g2", max_queue_depth=None)
    assert registry.submit("g3", max_queue_depth=2) == "g3"


@pytest.mark.parametrize("announced", [[], ["chat", "code"]], ids=["nobody", "others"])
def test_a_generator_that_nobody_announced_is_unknown(registry, announced):
    if announced:
        registry.run(
            fleet.announce({name: {"max_queue_depth": 1} for name in announced}, "w", {}, worker_s=30, keep_s=KEEP_S)
        )
    stored = registry.everything()
    with pytest.raises(UnknownGeneratorError, match="unknown generator 'default'; known: ") as refused:
        registry.submit(max_queue_depth=None)
    assert refused.value.known == announced
    assert registry.everything() == stored


@pytest.mark.parametrize("key", ["order-17", "two words", "é🦜", "%s %d", "a" * 512])
def test_the_same_idempotency_key_gives_the_same_generation(registry, key):
    first = registry.submit(idempotency_key=key)
    assert registry.submit(idempotency_key=key) == first
    assert rings(registry) == [first]


def test_an_idempotency_key_still_stands_when_its_generation_has_ended(registry):
    first = registry.submit(idempotency_key="k")
    registry.finish(registry.cancelled(first))
    assert registry.submit(idempotency_key="k") == first


def test_an_idempotency_key_finds_its_generation_in_a_full_queue(registry):
    first = registry.submit(idempotency_key="k", max_queue_depth=1)
    assert registry.submit(idempotency_key="k", max_queue_depth=1) == first


@pytest.mark.parametrize(
    "other", [{"prompt": "Another"}, {"priority": 1}, {"generator": "other"}, {"generation_kwargs": {"seed": 1}}]
)
def test_an_idempotency_key_used_for_another_request_is_a_conflict(registry, other):
    first = registry.submit(idempotency_key="k")
    stored = registry.everything()
    with pytest.raises(IdempotencyConflictError) as refused:
        registry.submit(idempotency_key="k", **other)
    assert (refused.value.key, refused.value.generation_id) == ("k", first)
    assert registry.everything() == stored


def with_tool(**schema):
    """A chat whose tool has a schema, of which the order of the keys is free."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", **schema}}}
    return {"prompt": None, "messages": [{"role": "user", "content": "Hi"}], "tools": [tool]}


ONE = with_tool(properties={"a": {}, "b": {}}, required=["a"])
OTHER = with_tool(required=["a"], properties={"b": {}, "a": {}})
ANOTHER = with_tool(properties={"a": {}, "c": {}}, required=["a"])


@pytest.mark.parametrize(("first", "then"), [(ONE, OTHER), (OTHER, ONE), (ONE, ONE)])
def test_a_retry_whose_objects_have_their_keys_in_another_order_is_the_same_request(registry, first, then):
    generation_id = registry.submit(idempotency_key="k", **first)
    assert registry.submit(idempotency_key="k", **then) == generation_id
    with pytest.raises(IdempotencyConflictError):
        registry.submit(idempotency_key="k", **ANOTHER)


def test_a_retry_across_an_upgrade_is_the_same_request(registry):
    """Producers before this one store, and compare, the fingerprint of the request as it was written."""
    request = read_request(ONE)
    registry.submit("g1", **ONE)
    registry.raw.set(keys.idempotency("theirs"), f"g1 {request.fingerprint_as_written()}", ex=RESULT_TTL_S)
    assert registry.submit(idempotency_key="theirs", **ONE) == "g1"
    ours = registry.submit(idempotency_key="ours", **ONE)
    assert registry.raw.get(keys.idempotency("ours")).decode() == f"{ours} {request.fingerprint_as_written()}"


def test_each_priority_rings_in_its_own_list_and_waits_in_its_own_place(registry):
    submitted = [(priority, registry.submit(priority=priority)) for priority in (9, 0, 5, 0, 9, 1)]
    for priority in (0, 1, 5, 9):
        assert rings(registry, priority) == [each for own, each in submitted if own == priority]
    positions = [registry.run(reading.queue_position(each, "default")) for _, each in submitted]
    by_priority = [priority for _, (priority, _) in sorted(zip(positions, submitted, strict=True))]
    assert positions != sorted(positions)
    assert by_priority == [0, 0, 1, 5, 9, 9]


def test_a_deadline_is_stored_on_rediss_clock(registry):
    generation_id = registry.submit(deadline_s=2.5)
    stored = registry.hash(generation_id)
    assert float(stored["deadline_at"]) - float(stored["submitted_at"]) == pytest.approx(2.5, abs=1e-5)


@pytest.mark.parametrize("deadline_s", [1e-9, 1e15, 1e300])
def test_an_odd_deadline_is_stored_and_read(registry, deadline_s):
    generation_id = registry.submit(deadline_s=deadline_s)
    assert float(registry.hash(generation_id)["deadline_at"]) > 0


def test_a_worker_that_has_the_message_in_hand_does_not_ring(registry):
    generation_id = registry.submit(ring=False)
    assert rings(registry) == []
    assert registry.hash(generation_id)["state"] == "queued"


def test_a_huge_prompt_arrives_whole(registry):
    prompt = "🦜" * 250_000  # as many bytes as are taken
    generation_id = registry.submit(prompt=prompt)
    claim = registry.claim(generation_id)
    assert GenerationRequest.model_validate_json(claim.request).prompt == prompt


@pytest.mark.parametrize("ending", ["", ":log", ":text", ":live", ":untold"])
def test_an_idempotency_key_that_looks_like_a_generations_key_is_none(registry, ending):
    first = registry.running()
    key = f"{first}{ending}"
    second = registry.submit(idempotency_key=key)
    assert registry.submit(idempotency_key=key) == second != first
    assert registry.append(flush(first, 1, ["It", " is"])) == ["ok"]
    assert registry.text(first) == "It is"
    assert [event.split()[1] for event in registry.events(first)] == ["started", "chunk", "chunk"]
    assert registry.hash(first)["state"] == "running"
