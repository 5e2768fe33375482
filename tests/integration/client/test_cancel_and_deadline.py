"""Cancel in every phase, and one deadline over all of them: the text so far is kept."""

import threading
import time

import pytest
from celery.exceptions import TaskRevokedError

from genqueue import (
    GenerationCancelledError,
    GenerationClient,
    GenerationExpiredError,
    ResultTimeoutError,
    Settings,
)

ENDLESS = {"max_new_tokens": 5000}


@pytest.fixture(scope="module")
def single_worker(launch_worker, queue_redis, standin):
    """A worker with one place, so that a second generation waits in the queue."""
    tgi = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    worker = launch_worker({"single": tgi}, queue_redis.url.removesuffix("/0") + "/3", "-c", "1")
    yield worker
    assert worker.end() == 0


@pytest.fixture
def single(single_worker):
    with GenerationClient(Settings(redis_url=single_worker.producer_url, generators={})) as client:
        yield client


@pytest.fixture
def held(single, ask, eventually):
    """The generation that has the worker's one place."""
    generation = single.submit(ask(tokens=100_000, itl_s=0.02), generator="single", generation_kwargs=ENDLESS)
    eventually(lambda: generation.status().state == "running")
    yield generation
    generation.cancel()


def endless(client, ask, **options):
    prompt = ask(tokens=100_000, itl_s=0.02)
    return prompt, client.submit(prompt, generation_kwargs=ENDLESS, **options)


def assert_cancelled(generation, prompt):
    """All who ask hear that it was cancelled, and get a beginning of the text; returns that."""
    with pytest.raises(GenerationCancelledError) as by_result:
        generation.result(timeout_s=10)
    text = by_result.value.partial_text
    assert prompt.beginning(5000).startswith(text)
    with pytest.raises(GenerationCancelledError) as by_stream:
        list(generation.stream())
    assert by_stream.value.partial_text == text
    (*_, last) = generation.events()
    assert last.type == "cancelled"
    assert generation.status().state == "cancelled"
    return text


def test_cancel_while_it_waits_in_the_queue(single, held, ask, standin, eventually):
    prompt = ask()
    generation = single.submit(prompt, generator="single")
    assert generation.status().position == 0
    assert generation.cancel() is True
    assert assert_cancelled(generation, prompt) == ""
    assert generation.status().position is None
    held.cancel()
    after = ask(tokens=2)
    assert single.submit(after, generator="single").result(timeout_s=10).replies == [after.answer]
    assert standin.requests(prompt) == []


def test_cancel_during_prefill_closes_the_call(client, ask, standin, eventually):
    prompt = ask(ttft_s=60)
    generation = client.submit(prompt)
    eventually(lambda: standin.requests(prompt))
    assert generation.cancel() is True
    call = eventually(lambda: (entry := standin.only(prompt))["state"] != "running" and entry)
    assert (call["state"], call["tokens_sent"]) == ("dropped", 0)
    assert assert_cancelled(generation, prompt) == ""


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no-stream"])
def test_cancel_while_decoding_closes_the_call_and_keeps_the_text(client, ask, standin, eventually, stream):
    prompt, generation = endless(client, ask, stream=stream)
    eventually(lambda: generation.status().completion_tokens >= 5)
    cancelled_s = time.time()
    assert generation.cancel() is True
    call = eventually(lambda: (entry := standin.only(prompt))["state"] != "running" and entry)
    assert call["state"] == "dropped"
    assert call["closed_at_s"] - cancelled_s < 5
    text = assert_cancelled(generation, prompt)
    assert len(text) >= len(prompt.beginning(5))
    with pytest.raises(GenerationCancelledError) as cancelled:
        generation.result()
    assert cancelled.value.usage["completion_tokens"] >= 5


def test_a_one_shot_call_is_cancelled_too(client, ask, standin, eventually):
    prompt = ask(ttft_s=60)
    generation = client.submit(prompt, generation_kwargs={"decoder_input_details": True})
    eventually(lambda: standin.requests(prompt))
    assert generation.cancel() is True
    eventually(lambda: standin.only(prompt)["state"] == "dropped")
    assert_cancelled(generation, prompt)


def test_a_reader_is_told_at_once(client, ask, eventually):
    prompt, generation = endless(client, ask)
    chunks, ended = [], []

    def read():
        try:
            chunks.extend(generation.stream())
        except GenerationCancelledError as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    eventually(lambda: generation.status().completion_tokens >= 5)
    client.generation(generation.id).cancel()
    reader.join(timeout=4.5)  # before a silent channel is looked after
    assert not reader.is_alive()
    (error,) = ended
    assert prompt.beginning(5000).startswith(error.partial_text)


def test_cancel_after_the_end_changes_nothing(client, ask, db):
    prompt = ask()
    generation = client.submit(prompt)
    result = generation.result(timeout_s=10)
    stored = db.get(f"celery-task-meta-{generation.id}")
    assert generation.cancel() is False
    assert generation.result(timeout_s=10) == result
    assert db.get(f"celery-task-meta-{generation.id}") == stored
    assert generation.status().state == "finished"


def test_cancelling_twice_is_the_same_as_once(client, ask, eventually):
    prompt, generation = endless(client, ask)
    eventually(lambda: generation.status().completion_tokens > 0)
    assert generation.cancel() is True
    assert generation.cancel() is True
    assert_cancelled(generation, prompt)


async def test_the_async_client_cancels(async_client, ask, standin):
    prompt, submitting = endless(async_client, ask)
    generation = await submitting
    chunks = generation.stream()
    await anext(chunks)
    assert await generation.cancel() is True
    with pytest.raises(GenerationCancelledError):
        async for _ in chunks:
            pass
    with pytest.raises(GenerationCancelledError):
        await generation.result(timeout_s=10)
    assert len(standin.requests(prompt)) == 1


def test_celery_sees_a_cancelled_generation_as_revoked(client, ask, celery_app, eventually):
    _, generation = endless(client, ask)
    eventually(lambda: generation.status().completion_tokens > 0)
    generation.cancel()
    with pytest.raises(TaskRevokedError, match="cancelled"):
        celery_app.AsyncResult(generation.id).get(timeout=30)
    assert celery_app.AsyncResult(generation.id).state == "REVOKED"


def test_a_cancelled_generation_gives_its_place_back(single, held, ask):
    prompt = ask(tokens=2)
    waiting = single.submit(prompt, generator="single")
    with pytest.raises(ResultTimeoutError):
        waiting.result(timeout_s=0.2)
    held.cancel()
    assert waiting.result(timeout_s=5).replies == [prompt.answer]


def test_a_message_that_expires_before_a_worker_has_it_ends_as_expired(client, ask, celery_app, standin):
    """Celery's own word for it is revoked, which is a cancel here: nobody cancelled it."""
    prompt = ask()
    sent = celery_app.send_task("genqueue.generate", kwargs={"prompt": prompt}, queue="generate.default", expires=-5)
    with pytest.raises(Exception, match="the deadline passed before a worker had the message") as told:
        sent.get(timeout=10)
    assert type(told.value).__name__ == "GenerationExpiredError"
    assert sent.state == "FAILURE"
    with pytest.raises(GenerationExpiredError, match="expires") as read:
        client.generation(sent.id).result(timeout_s=5)
    assert read.value.attempts == 0
    assert standin.requests(prompt) == []


# --- deadline --------------------------------------------------------------------------------


def assert_expired(generation, prompt):
    with pytest.raises(GenerationExpiredError) as by_result:
        generation.result(timeout_s=10)
    with pytest.raises(GenerationExpiredError) as by_stream:
        list(generation.stream())
    assert by_stream.value.partial_text == by_result.value.partial_text
    (*_, last) = generation.events()
    assert (last.type, last.error) == ("failed", "expired")
    assert prompt.beginning(5000).startswith(by_result.value.partial_text)
    return by_result.value


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no-stream"])
def test_the_deadline_ends_a_running_generation_with_its_text_kept(client, ask, standin, eventually, stream):
    began_s = time.monotonic()
    prompt, generation = endless(client, ask, deadline_s=2.0, stream=stream)
    error = assert_expired(generation, prompt)
    assert 2.0 <= time.monotonic() - began_s < 10
    assert "while it ran" in str(error)
    assert len(error.partial_text) >= len(prompt.beginning(5))
    assert error.usage["completion_tokens"] >= 5
    assert error.attempts == 1
    eventually(lambda: standin.only(prompt)["state"] == "dropped")


def test_the_deadline_covers_the_first_token(client, ask, standin, eventually):
    prompt = ask(ttft_s=60)
    error = assert_expired(client.submit(prompt, deadline_s=2.0), prompt)
    assert error.partial_text == ""
    eventually(lambda: standin.only(prompt)["state"] == "dropped")


def test_the_deadline_covers_the_queue(single, held, ask, standin):
    prompt = ask()
    generation = single.submit(prompt, generator="single", deadline_s=0.3)
    error = assert_expired(generation, prompt)  # a sweeper's doing: the worker's one place is still taken
    assert held.status().state == "running"
    assert "in the queue" in str(error)
    assert error.attempts == 0
    assert standin.requests(prompt) == []


def test_a_deadline_that_is_kept_is_not_noticed(client, ask):
    prompt = ask(tokens=10, itl_s=0.01)
    assert client.submit(prompt, deadline_s=30).result(timeout_s=10).replies == [prompt.answer]


# --- patience --------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [0, 0.3])
def test_patience_ends_and_the_generation_goes_on(client, ask, timeout_s):
    prompt = ask(tokens=100, itl_s=0.03)
    generation = client.submit(prompt)
    began_s = time.monotonic()
    with pytest.raises(ResultTimeoutError, match=f"not ended within {timeout_s:g} s") as timed_out:
        generation.result(timeout_s=timeout_s)
    assert time.monotonic() - began_s < timeout_s + 5
    assert (timed_out.value.generation_id, timed_out.value.timeout_s) == (generation.id, timeout_s)
    assert isinstance(timed_out.value, TimeoutError)
    assert generation.result(timeout_s=10).replies == [prompt.answer]


async def test_async_patience_ends_and_the_generation_goes_on(async_client, ask):
    prompt = ask(tokens=100, itl_s=0.03)
    generation = await async_client.submit(prompt)
    with pytest.raises(ResultTimeoutError):
        await generation.result(timeout_s=0.2)
    assert (await generation.result(timeout_s=10)).replies == [prompt.answer]
