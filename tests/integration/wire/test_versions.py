"""A producer of a newer version and a worker of this one share a Redis."""

import json
import uuid

import pytest

from genqueue import (
    GenerationCancelledError,
    GenerationExpiredError,
    GenerationFailedError,
    GenerationRejectedError,
    Settings,
    keys,
)
from genqueue.registry import submitting
from genqueue.wire.request import read_request


@pytest.fixture
def submit_newer(client, db, worker):
    """``submit_newer(prompt, field=…)``: submit with a field that only a newer producer knows."""

    def submit(prompt, *, deadline_s=None, **more):
        request = read_request({"prompt": prompt} | ({} if deadline_s is None else {"deadline_s": deadline_s}))
        options = {"keep_s": 600, "idempotency_key": None, "idempotency_ttl_s": 60, "max_queue_depth": -1}
        generation_id = str(uuid.uuid4())
        call = submitting.submit(generation_id, request, **options)
        newer = json.dumps({**json.loads(request.to_wire()), **more}).encode()
        arguments = [newer if each == request.to_wire() else each for each in call.arguments]
        db.eval(call.script.source, *arguments)
        return client.generation(generation_id)

    return submit


@pytest.mark.parametrize("more", [{"tenant": "ultramarine"}, {"v": 2}, {"v": 2, "tenant": "ultramarine"}], ids=str)
def test_what_this_version_does_not_know_waits_for_a_newer_worker(submit_newer, ask, db, worker, eventually, more):
    prompt = ask(tokens=3)
    generation = submit_newer(prompt, **more)
    eventually(lambda: generation.status().waits_for)
    status = generation.status()
    assert (status.state, status.error) == ("queued", None)
    assert status.waits_for.startswith("a newer worker: one that took it does not know ")
    attempts = eventually(lambda: generation.status().attempt if generation.status().attempt > 1 else None)
    assert attempts < 5  # not in a circle without a pause
    # A worker that knows it comes.
    eventually(lambda: db.hget(keys.generation(generation.id), "state") == b"queued")
    db.hset(keys.generation(generation.id), "request", read_request({"prompt": prompt}).to_wire())
    result = generation.result(timeout_s=20)
    assert result.replies == [prompt.answer]
    assert generation.status().waits_for is None
    assert db.hget(keys.generation(generation.id), "failures") is None


def test_the_log_says_once_what_is_not_known(submit_newer, ask, worker, eventually):
    generations = [submit_newer(ask(), shade=number) for number in range(3)]
    eventually(lambda: all(each.status().attempt > 1 for each in generations))
    assert worker.log.count("does not know the field shade") == 1
    assert "ultramarine" not in worker.log
    for each in generations:
        each.cancel()


def test_it_can_be_cancelled_and_its_deadline_passes(submit_newer, ask, eventually):
    cancelled, overdue = submit_newer(ask(), tenant="x"), submit_newer(ask(), tenant="x", deadline_s=1.0)
    eventually(lambda: cancelled.status().waits_for)
    assert cancelled.cancel()
    with pytest.raises(GenerationCancelledError):
        cancelled.result(timeout_s=10)
    with pytest.raises(GenerationExpiredError):
        overdue.result(timeout_s=10)


@pytest.mark.parametrize(
    ("more", "words"), [({"tenant": "ultramarine"}, "the field tenant"), ({"v": 2}, "version 2")], ids=str
)
def test_after_keep_s_it_has_failed_and_can_be_retried(submit_newer, ask, db, client, worker, eventually, more, words):
    prompt = ask(tokens=3)
    generation = submit_newer(prompt, **more)
    eventually(lambda: generation.status().waits_for)
    db.hincrbyfloat(keys.generation(generation.id), "submitted_at", -worker_keep_s())
    with pytest.raises(GenerationFailedError) as failed:
        generation.result(timeout_s=20)
    assert str(failed.value).startswith(f"no worker that took it within {worker_keep_s()} s (keep_s) knows {words}")
    status = generation.status()
    assert (status.state, status.waits_for) == ("failed", None)
    assert "ultramarine" not in str(failed.value)
    db.hset(keys.generation(generation.id), "request", read_request({"prompt": prompt}).to_wire())  # after the upgrade
    assert client.retry(generation.id).result(timeout_s=20).replies == [prompt.answer]


def worker_keep_s():
    return Settings.model_fields["keep_s"].default


def test_a_bad_value_of_what_is_known_is_refused_for_good(submit_newer, ask):
    with pytest.raises(GenerationRejectedError, match="priority"):
        submit_newer(ask(), priority=77).result(timeout_s=10)
