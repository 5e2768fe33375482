"""A cancel, a revoke and Flower's Terminate mean the same in every phase, and end a generation once."""

import random
import threading
import time
import uuid

import pytest
import redis
from celery.result import AsyncResult

from genqueue import GenerationCancelledError, keys

from ...support.programs import plain_celery
from ...support.roles import as_role

CLOSED_WITHIN_S = 5.0  # here whatever else runs; `make chaos` holds the 95th percentile to 0.1 s


@pytest.fixture(scope="module")
def fleet(fleet_of, standin):
    tgi = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": tgi}) as opened:
        opened.staff(2)
        yield opened


@pytest.fixture(scope="module")
def app(fleet):
    with plain_celery(fleet.producer_url, broker=as_role(fleet.redis.url, "flower")) as app:
        yield app


@pytest.fixture
def db(fleet):
    with redis.Redis.from_url(fleet.redis.url) as client:
        yield client


@pytest.fixture(scope="module")
def flower(fleet, flower_of, standin):
    tgi = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with flower_of(fleet.redis.url, {"default": tgi}) as opened:
        yield opened


def tokens_of(reading):
    return sum(len(getattr(event, "tokens", ())) for _, event in reading.events)


WAYS = {
    "cancel": lambda app, generation: generation.cancel(),
    "revoke": lambda app, generation: AsyncResult(generation.id, app=app).revoke(),
    "terminate": lambda app, generation: AsyncResult(generation.id, app=app).revoke(terminate=True),
}
any_way = pytest.mark.parametrize("way", WAYS)


def assert_cancelled(app, reading):
    """The same end for whoever asks."""
    generation = reading.generation
    with pytest.raises(GenerationCancelledError) as cancelled:
        generation.result(timeout_s=10)
    text = reading.text()
    assert reading.kinds()[-1].endswith(".cancelled")
    assert cancelled.value.partial_text == text
    with pytest.raises(GenerationCancelledError):
        list(generation.stream())
    assert generation.status().state == "cancelled"
    assert AsyncResult(generation.id, app=app).state == "REVOKED"
    return cancelled.value


@any_way
def test_what_decodes_is_stopped_at_once(fleet, app, ask, read, standin, eventually, way):
    prompts = [ask(tokens=5000, itl_s=0.02) for _ in range(20)]
    readings = [read(fleet.client.submit(prompt, generation_kwargs={"max_new_tokens": 5000})) for prompt in prompts]
    eventually(lambda: all(len(reading.events) > 3 for reading in readings))
    asked_s = {}
    for prompt, reading in zip(prompts, readings, strict=True):
        asked_s[prompt] = time.time()
        WAYS[way](app, reading.generation)
        time.sleep(0.02)  # one after the other, as people do
    eventually(lambda: all(standin.only(prompt)["state"] == "dropped" for prompt in prompts))
    assert max(standin.only(prompt)["closed_at_s"] - asked_s[prompt] for prompt in prompts) < CLOSED_WITHIN_S
    for prompt, reading in zip(prompts, readings, strict=True):
        error = assert_cancelled(app, reading)
        assert error.partial_text
        assert prompt.answer.startswith(error.partial_text)
        assert error.usage["completion_tokens"] > 0


@any_way
def test_what_waits_for_its_first_token_is_stopped(fleet, app, ask, read, standin, eventually, way):
    prompt = ask(ttft_s=60)
    reading = read(fleet.client.submit(prompt))
    eventually(lambda: standin.requests(prompt))
    WAYS[way](app, reading.generation)
    eventually(lambda: standin.only(prompt)["state"] == "dropped")
    assert assert_cancelled(app, reading).partial_text == ""


@any_way
def test_what_backs_off_is_not_tried_again(fleet, app, ask, read, standin, eventually, way):
    fault = {"kind": "status", "status": 503, "times": 1}
    prompt = ask(faults=[{**fault, "headers": {"Retry-After": "1"}}])  # due 1 to 3 s after its answer
    reading = read(fleet.client.submit(prompt))
    eventually(lambda: standin.requests(prompt) and fleet.record(reading.generation)["state"] == "queued")
    WAYS[way](app, reading.generation)
    assert_cancelled(app, reading)
    after = ask(faults=[{**fault, "headers": {"Retry-After": "4"}}])  # due later, however the dice fall
    assert fleet.client.submit(after).result(timeout_s=20).replies == [after.answer]
    assert len(standin.requests(prompt)) == 1


@any_way
def test_what_is_queued_never_starts(app, fleet, ask, read, standin, eventually, way):
    """Its queue is full of others: of those, the workers of the fleet take 64 at once each."""
    long = {"max_new_tokens": 5000}
    holders = [
        fleet.client.submit(ask(tokens=5000, itl_s=0.2), stream=False, generation_kwargs=long) for _ in range(128)
    ]
    eventually(lambda: all(fleet.record(holder)["state"] == "running" for holder in holders))
    prompt = ask()
    reading = read(fleet.client.submit(prompt))
    assert fleet.record(reading.generation)["state"] == "queued"
    WAYS[way](app, reading.generation)
    assert_cancelled(app, reading)
    for holder in holders:
        holder.cancel()
    assert fleet.client.submit(ask()).result(timeout_s=20)
    assert standin.requests(prompt) == []
    assert reading.kinds() == ["0.cancelled"]


def took_s(client, prompt):
    began_s = time.monotonic()
    client.submit(prompt).result(timeout_s=10)
    return time.monotonic() - began_s


def test_a_cancel_that_races_with_the_end_gives_one_outcome_to_all(fleet, app, ask, read):
    dice = random.Random(5)
    outcomes = []
    usual_s = min(took_s(fleet.client, ask(tokens=6, itl_s=0.01)) for _ in range(5))
    for number in range(100):
        prompt = ask(tokens=6, itl_s=0.01)
        generation = fleet.client.submit(prompt)
        reading = read(generation)
        way = list(WAYS)[number % len(WAYS)]
        canceller = threading.Timer(dice.uniform(0.3 * usual_s, 1.5 * usual_s), WAYS[way], (app, generation))
        canceller.start()
        text = reading.text()
        canceller.join()
        ended = reading.kinds()[-1].split(".")[1]
        outcomes.append(ended)
        assert generation.status().state == ended
        assert [kind for kind in reading.kinds() if kind.endswith((".finished", ".cancelled", ".failed"))] == [
            reading.kinds()[-1]
        ]
        if ended == "finished":
            assert generation.result(timeout_s=5).replies == [prompt.answer] == [text]
            assert AsyncResult(generation.id, app=app).state == "SUCCESS"
            assert AsyncResult(generation.id, app=app).result["replies"] == [prompt.answer]
        else:
            assert assert_cancelled(app, reading).partial_text == text
    assert set(outcomes) == {"finished", "cancelled"}, outcomes


@pytest.mark.parametrize("button", ["revoke/{}", "revoke/{}?terminate=true", "revoke/{}?terminate=true&signal=SIGKILL"])
def test_flowers_buttons_mean_the_same(fleet, app, ask, read, standin, eventually, flower, button):
    """What decodes, what waits for its first token, and what backs off."""
    unwilling = {"kind": "status", "status": 503, "headers": {"Retry-After": "4"}}
    decodes, waits, backs_off = ask(tokens=400, itl_s=0.05), ask(ttft_s=60), ask(faults=[unwilling])
    readings = [read(fleet.client.submit(prompt)) for prompt in (decodes, waits, backs_off)]
    eventually(lambda: tokens_of(readings[0]) > 5 and standin.requests(waits))
    eventually(lambda: standin.requests(backs_off) and fleet.record(readings[2].generation)["state"] == "queued")
    for reading in readings:
        answer = flower.ask(f"task/{button.format(reading.generation.id)}", "POST")
        assert reading.generation.id in answer["message"]
    errors = [assert_cancelled(app, reading) for reading in readings]
    eventually(lambda: {standin.only(prompt)["state"] for prompt in (decodes, waits)} == {"dropped"})
    assert errors[0].partial_text
    assert errors[0].usage["completion_tokens"] == tokens_of(readings[0])
    for reading in readings[:2]:  # what backs off is with no worker: none says what became of its task
        eventually(lambda: (flower.ask(f"task/info/{reading.generation.id}") or {}).get("state") == "REVOKED")  # noqa: B023
    prompt = ask()
    assert fleet.client.submit(prompt).result(timeout_s=10).replies == [prompt.answer]


@pytest.mark.parametrize("way", ["revoke", "cancel"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("priority", "x"), ("submitted_at", ""), ("generator", None), ("state", None), ("state", "parked"), ("seq", "x")],
)
def test_what_cannot_be_read_is_cancelled_too(fleet, app, db, ask, eventually, way, field, value):
    generation = fleet.client.submit(ask(tokens=5000, itl_s=0.02), generation_kwargs={"max_new_tokens": 5000})
    eventually(lambda: generation.status().state == "running")
    key = keys.generation(generation.id)
    if value is None:
        db.hdel(key, field)
    else:
        db.hset(key, field, value)
    WAYS[way](app, generation)
    eventually(lambda: db.hget(key, "state") == b"cancelled")  # a revoke is on its way for a while
    with pytest.raises(GenerationCancelledError):
        generation.result(timeout_s=10)
    assert generation.status().state == "cancelled"
    assert AsyncResult(generation.id, app=app).state == "REVOKED"
    eventually(lambda: fleet.client.overview().running == 0)


def test_a_revoke_of_a_key_of_another_type_is_kept_for_its_message(app, db, eventually):
    generation_id = str(uuid.uuid4())
    db.set(keys.generation(generation_id), "of another type", ex=60)
    AsyncResult(generation_id, app=app).revoke()
    eventually(lambda: AsyncResult(generation_id, app=app).state == "REVOKED")
    assert db.hget(keys.generation(generation_id), "state") == b"cancelled"
