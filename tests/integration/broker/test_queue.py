"""Order, limits and repeats: what the queue promises, with a worker that runs one generation at a time."""

import json
import subprocess
import sys
import uuid

import pytest
import redis
from celery.result import AsyncResult

from genqueue import (
    GenerationClient,
    GenerationNotFoundError,
    GenerationRejectedError,
    IdempotencyConflictError,
    InvalidRequestError,
    QueueFullError,
    Settings,
    UnknownGeneratorError,
)
from genqueue.keys import doorbell
from genqueue.registry import submitting
from genqueue.registry.submitting import doorbell_message
from genqueue.wire.request import GenerationRequest

from ...support.programs import plain_celery
from ...support.roles import as_role

LONG = {"max_new_tokens": 5000}


@pytest.fixture(scope="module")
def narrow_url(queue_redis):
    return queue_redis.url.removesuffix("/0") + "/1"


@pytest.fixture(scope="module")
def narrow_worker(launch_worker, narrow_url, standin):
    """One generation at a time, of ``narrow``; the queue of ``small`` is full at 3."""
    tgi = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    worker = launch_worker({"narrow": tgi, "small": {**tgi, "max_queue_depth": 3}}, narrow_url, "-c", "1")
    yield worker
    assert worker.end() == 0


@pytest.fixture
def narrow(narrow_worker, narrow_url):
    """A client whose settings name no generator: limits are what the worker announced."""
    with GenerationClient(Settings(redis_url=as_role(narrow_url, "producer"), generators={})) as client:
        yield client


@pytest.fixture
def narrow_db(narrow_url):
    with redis.Redis.from_url(narrow_url) as client:
        yield client


@pytest.fixture
def busy(narrow, ask, eventually):
    """The worker's only place is taken until this is cancelled."""
    holder = narrow.submit(
        ask(tokens=100_000, itl_s=0.02), generator="narrow", generation_kwargs={"max_new_tokens": 5000}
    )
    eventually(lambda: holder.status().state == "running")
    yield holder
    holder.cancel()


def test_lower_numbers_go_first_and_equals_in_order(narrow, busy, ask, standin):
    prompts = [ask(f"p{priority}", tokens=2) for priority in (9, 5, 0, 5, 3, 0, 8)]
    generations = [narrow.submit(prompt, generator="narrow", priority=int(prompt[1])) for prompt in prompts]
    positions = [generation.status().position for generation in generations]
    assert positions == [6, 3, 0, 4, 2, 1, 5]
    busy.cancel()
    for generation in generations:
        generation.result(timeout_s=20)
    served = [entry["body"]["inputs"] for entry in standin.requests() if entry["body"].get("inputs") in prompts]
    assert [prompt[:2] for prompt in served] == ["p0", "p0", "p3", "p5", "p5", "p8", "p9"]
    assert served == [prompts[place] for place in (2, 5, 4, 1, 3, 6, 0)]


def test_what_was_cancelled_in_the_queue_holds_up_nothing(narrow, busy, ask, narrow_worker, narrow_db, eventually):
    """No task is made of their doorbells, but of the few that Celery has by then."""
    with plain_celery(as_role(narrow_worker.redis_url, "flower")) as app:
        (before,) = app.control.inspect(timeout=30, limit=1).stats().values()
    tasks = before["total"]["genqueue.generate"]
    cancelled = [narrow.submit(ask(), generator="narrow") for _ in range(400)]
    for generation in cancelled:
        generation.cancel()
    behind = narrow.submit(last := ask(tokens=2), generator="narrow", priority=9)
    busy.cancel()
    assert behind.result(timeout_s=20).replies == [last.answer]
    lists = [doorbell("narrow", priority) for priority in range(10)]
    eventually(lambda: sum(map(narrow_db.llen, lists)) == 0)

    def told():
        return [line["generation_id"] for line in narrow_worker.lines if line.get("outcome") == "cancelled"]

    ids = {generation.id for generation in cancelled}
    eventually(lambda: ids <= set(told()))
    assert len(told()) == len(set(told()))
    with plain_celery(as_role(narrow_worker.redis_url, "flower")) as app:
        (stats,) = app.control.inspect(timeout=30, limit=1).stats().values()
    assert stats["total"]["genqueue.generate"] - tasks < 100
    assert "Traceback" not in narrow_worker.log


def test_a_full_queue_refuses_with_its_depth_and_limit_and_takes_again_when_drained(narrow, busy, ask, narrow_db):
    queued = [narrow.submit(ask(tokens=2), generator="small") for _ in range(3)]
    with pytest.raises(QueueFullError, match="queue 'small' holds 3 generations, limit 3") as full:
        narrow.submit(ask(), generator="small")
    assert (full.value.generator, full.value.depth, full.value.limit) == ("small", 3, 3)
    assert narrow_db.zcard("genqueue:waiting:small") == 3
    assert queued[0].cancel() is True  # a place comes free
    another = narrow.submit(ask(tokens=2), generator="small")
    busy.cancel()
    for generation in [*queued[1:], another]:
        assert generation.result(timeout_s=20).meta[0]["generator"] == "small"
    assert narrow.submit(ask(tokens=2), generator="small").result(timeout_s=20)


def test_a_producers_own_limit_wins_over_the_announced_one(narrow, busy, ask, narrow_url, standin):
    tgi = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}, "max_queue_depth": 1}
    with GenerationClient(Settings(redis_url=as_role(narrow_url, "producer"), generators={"narrow": tgi})) as strict:
        waiting = strict.submit(ask(), generator="narrow")
        with pytest.raises(QueueFullError, match="holds 1 generations, limit 1"):
            strict.submit(ask(), generator="narrow")
        waiting.cancel()


def test_an_idempotency_key_gives_the_same_generation_back(client, ask, standin):
    prompt, key = ask(), uuid.uuid4().hex
    first = client.submit(prompt, idempotency_key=key)
    assert client.submit(prompt, idempotency_key=key).id == first.id
    result = first.result(timeout_s=10)
    again = client.submit(prompt, idempotency_key=key)
    assert again.id == first.id
    assert again.result(timeout_s=10) == result
    assert len(standin.requests(prompt)) == 1
    assert client.submit(prompt).id != first.id


def test_an_idempotency_key_used_for_another_request_is_a_conflict(client, ask):
    key = uuid.uuid4().hex
    first = client.submit(ask(), idempotency_key=key)
    with pytest.raises(IdempotencyConflictError, match=first.id) as conflict:
        client.submit(ask(), idempotency_key=key)
    assert conflict.value.key == key
    first.result(timeout_s=10)  # or it makes its keys within the next test, which compares them


def test_an_accepted_key_does_not_count_against_a_full_queue(narrow, busy, ask):
    prompt, key = ask(), uuid.uuid4().hex
    first = narrow.submit(prompt, generator="small", idempotency_key=key)
    others = [narrow.submit(ask(), generator="small") for _ in range(2)]
    assert narrow.submit(prompt, generator="small", idempotency_key=key).id == first.id
    for generation in [first, *others]:
        generation.cancel()


@pytest.mark.parametrize(
    ("submission", "message"),
    [
        pytest.param({"prompt": ""}, "prompt: .*at least 1 character", id="empty-prompt"),
        pytest.param({"prompt": 7}, "prompt: ", id="prompt-is-no-string"),
        pytest.param({"prompt": "\ud800"}, "prompt: .*unicode", id="half-a-character"),
        pytest.param({"priority": 10}, "priority: ", id="priority-out-of-range"),
        pytest.param({"deadline_s": 0}, "deadline_s: ", id="no-time"),
        pytest.param({"deadline_s": "soon"}, "deadline_s: ", id="deadline-is-no-number"),
        pytest.param({"stop_words": "word"}, "stop_words: a list of strings", id="stop-words-are-one-string"),
        pytest.param({"stream": "yes"}, "stream: ", id="stream-is-no-bool"),
        pytest.param({"generation_kwargs": {"max_tokens": 5}}, "max_tokens: unknown; known: ", id="kwargs"),
        pytest.param({"generation_kwargs": {"max_new_tokens": "5"}}, "max_new_tokens: ", id="kwargs-type"),
        pytest.param({"generation_kwargs": {"return_full_text": True}}, "return_full_text: only False", id="full-text"),
        pytest.param({"generator": "no/name"}, "generator: ", id="impossible-generator"),
        pytest.param({"idempotency_key": ""}, "idempotency_key", id="empty-key"),
    ],
)
async def test_what_cannot_run_is_refused_at_once_and_queues_nothing(client, async_client, db, submission, message):
    before = set(db.keys("genqueue:generation:*"))
    submission = {"prompt": "Hello", **submission}
    with pytest.raises(InvalidRequestError, match=message):
        client.submit(**submission)
    with pytest.raises(InvalidRequestError, match=message):
        await async_client.submit(**submission)
    assert set(db.keys("genqueue:generation:*")) == before


def test_an_unknown_generator_is_refused_with_the_known_ones(client):
    with pytest.raises(UnknownGeneratorError, match=r"unknown generator 'nobody'; known: .*default.*tuned") as unknown:
        client.submit("Hello", generator="nobody")
    assert "default" in unknown.value.known


# --- producers that know only Celery ---------------------------------------------------------


def send(app, task_id=None, queue="generate.default", **kwargs):
    return app.send_task("genqueue.generate", kwargs=kwargs, queue=queue, task_id=task_id, ignore_result=False)


def test_a_plain_send_task_is_adopted(client, ask, celery_app, standin):
    prompt = ask(tokens=20, itl_s=0.02)
    sent = send(celery_app, prompt=prompt, generation_kwargs={"max_new_tokens": 5}, stop_words=["§"], priority=2)
    result = sent.get(timeout=10)
    assert result["replies"] == [prompt.beginning(5)]
    assert result["meta"][0]["finish_reason"] == "length"
    assert result["meta"][0]["generator"] == "default"
    assert standin.only(prompt)["body"]["parameters"]["stop"] == ["§"]
    # It is a generation like any other.
    adopted = client.generation(sent.id)
    assert "".join(chunk.text for chunk in adopted.stream()) == prompt.beginning(5)
    assert adopted.result(timeout_s=10).replies == result["replies"]
    assert adopted.status().priority == 2


def test_a_plain_send_task_can_be_read_live(client, ask, celery_app, eventually):
    prompt = ask(tokens=60, itl_s=0.02)
    sent = send(celery_app, prompt=prompt, generator="default")
    generation = client.generation(sent.id)
    eventually(lambda: standing(generation) == "running")
    assert "".join(chunk.text for chunk in generation.stream()) == prompt.answer


def standing(generation):
    """Its state; None before a worker has registered it."""
    try:
        return generation.status().state
    except GenerationNotFoundError:
        return None


def test_a_producer_without_genqueue_gets_its_result(worker, ask):
    prompt = ask()
    program = (
        "import sys\n"
        "from celery import Celery\n"
        "app = Celery(broker=sys.argv[1], backend=sys.argv[1])\n"
        "sent = app.send_task('genqueue.generate', kwargs={'prompt': sys.argv[2]}, queue='generate.default')\n"
        "result = sent.get(timeout=15)\n"
        "assert 'genqueue' not in sys.modules\n"
        "sys.stdout.buffer.write(result['replies'][0].encode())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, worker.producer_url, prompt], capture_output=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode()
    assert ran.stdout.decode() == prompt.answer


def test_a_plain_send_task_for_another_generators_queue_is_refused(celery_app, ask, standin):
    prompt = ask()
    sent = send(celery_app, prompt=prompt, generator="tuned", queue="generate.default")
    with pytest.raises(GenerationRejectedError, match="'tuned' is not served from queue 'default'"):
        sent.get(timeout=10)
    assert standin.requests(prompt) == []


# --- a doorbell that rings twice -------------------------------------------------------------


def ring_again(db, generation_id, *, generator="default", priority=5, **changes):
    """Put the generation's Celery message into its list once more, as a redelivery would."""
    message = json.loads(doorbell_message(generation_id, generator, priority))
    message["properties"].update(changes)
    db.lpush(doorbell(generator, priority), json.dumps(message))


def ignored(worker, generation_id):
    return sum("attempt" not in line for line in worker.outcomes(generation_id))


def test_a_second_doorbell_while_it_runs_is_harmless(client, ask, db, standin, worker, eventually, celery_app):
    prompt = ask(tokens=200, itl_s=0.02)
    generation = client.submit(prompt)
    eventually(lambda: generation.status().completion_tokens > 3)
    for _ in range(3):
        ring_again(db, generation.id)
    eventually(lambda: ignored(worker, generation.id) == 3)
    assert generation.status().state == "running"
    assert "".join(chunk.text for chunk in generation.stream()) == prompt.answer
    assert AsyncResult(generation.id, app=celery_app).get(timeout=30)["replies"] == [prompt.answer]
    assert generation.status().attempt == 1
    assert len(standin.requests(prompt)) == 1


def test_a_second_doorbell_after_the_end_leaves_the_result(client, ask, db, standin, worker, eventually):
    prompt = ask()
    generation = client.submit(prompt)
    result = generation.result(timeout_s=10)
    stored = db.get(f"celery-task-meta-{generation.id}")
    ring_again(db, generation.id)
    ring_again(db, generation.id, delivery_tag=uuid.uuid4().hex)
    eventually(lambda: ignored(worker, generation.id) == 2)
    assert db.get(f"celery-task-meta-{generation.id}") == stored
    assert generation.result(timeout_s=10) == result
    assert len(standin.requests(prompt)) == 1


@pytest.mark.parametrize(
    "how",
    ["cancelled", "failed"],
)
def test_a_second_doorbell_does_not_revive_what_ended(client, ask, db, standin, worker, eventually, how):
    prompt = ask(tokens=5000, itl_s=0.02) if how == "cancelled" else ask(faults=[{"kind": "cut"}])
    generation = client.submit(prompt)
    if how == "cancelled":
        eventually(lambda: generation.status().completion_tokens > 0)
        generation.cancel()
    eventually(lambda: generation.status().state == how)
    eventually(lambda: worker.outcomes(generation.id))
    stored = db.get(f"celery-task-meta-{generation.id}")
    before = ignored(worker, generation.id)
    ring_again(db, generation.id)
    eventually(lambda: ignored(worker, generation.id) == before + 1)
    assert db.get(f"celery-task-meta-{generation.id}") == stored
    assert generation.status().state == how
    assert len(standin.requests(prompt)) == 1


def test_the_same_foreign_message_twice_runs_once(client, ask, standin, celery_app, worker, eventually):
    prompt, task_id = ask(tokens=30, itl_s=0.02), str(uuid.uuid4())
    sent = [send(celery_app, task_id=task_id, prompt=prompt) for _ in range(5)]
    assert sent[0].get(timeout=10)["replies"] == [prompt.answer]
    eventually(lambda: ignored(worker, task_id) == 4)
    send(celery_app, task_id=task_id, prompt=prompt)
    eventually(lambda: ignored(worker, task_id) == 5)
    assert sent[0].get(timeout=10)["replies"] == [prompt.answer]
    assert "".join(chunk.text for chunk in client.generation(task_id).stream()) == prompt.answer
    assert len(standin.requests(prompt)) == 1


def test_doorbells_that_ring_together_run_once(client, ask, standin, db, worker, eventually):
    prompt = ask(tokens=20, itl_s=0.02)
    with db.pipeline() as together:
        # Registered and rung five times before the worker sees any of it.
        generation_id = str(uuid.uuid4())
        submit = submitting.submit(
            generation_id,
            GenerationRequest(prompt=prompt),
            keep_s=600,
            idempotency_key=None,
            idempotency_ttl_s=600,
            max_queue_depth=None,
        )
        together.execute_command("EVAL", submit.script.source, *submit.arguments)
        for _ in range(4):
            ring_again(together, generation_id)
        together.execute()
    generation = client.generation(generation_id)
    assert generation.result(timeout_s=10).replies == [prompt.answer]
    assert "".join(chunk.text for chunk in generation.stream()) == prompt.answer
    eventually(lambda: ignored(worker, generation_id) == 4)
    assert {line["outcome"] for line in worker.outcomes(generation_id)} == {"ignored", "finished"}
    assert len(standin.requests(prompt)) == 1


def test_a_doorbell_for_nobody_is_ignored(client, ask, db, worker, eventually):
    stranger = str(uuid.uuid4())
    ring_again(db, stranger)
    eventually(lambda: ignored(worker, stranger) == 1)
    assert db.get(f"celery-task-meta-{stranger}") is None


def test_a_doorbell_on_the_wrong_queue_is_ignored(client, ask, db, worker, eventually, standin):
    prompt = ask(tokens=40, itl_s=0.02)
    generation = client.submit(prompt)
    ring_again(db, generation.id, generator="tuned")
    eventually(lambda: ignored(worker, generation.id) == 1)
    result = generation.result(timeout_s=10)
    assert (result.replies, result.meta[0]["generator"]) == ([prompt.answer], "default")
    assert len(standin.requests(prompt)) == 1


def test_redelivered_messages_in_the_low_priority_lists_run_too(client, ask, db):
    prompts = [ask() for _ in range(10)]
    generations = [client.submit(prompt, priority=priority) for priority, prompt in enumerate(prompts)]
    assert [generation.result(timeout_s=10).replies[0] for generation in generations] == [
        prompt.answer for prompt in prompts
    ]


@pytest.mark.parametrize(
    ("options", "kwargs", "priority"),
    [
        pytest.param({"priority": 7}, {}, 7, id="the-messages"),
        pytest.param({}, {}, 0, id="none-is-first"),
        pytest.param({"priority": 7}, {"priority": 2}, 2, id="the-requests-own"),
        pytest.param({"priority": 200}, {}, 9, id="of-another-brokers-scale"),
    ],
)
def test_a_celery_messages_priority_is_the_generations(worker, client, ask, options, kwargs, priority):
    with plain_celery(worker.producer_url) as app:
        prompt = ask()
        kwargs = {"prompt": prompt, **kwargs}
        sent = app.send_task("genqueue.generate", kwargs=kwargs, queue="generate.default", **options)
        assert sent.get(timeout=10)["replies"] == [prompt.answer]
        assert client.generation(sent.id).status().priority == priority
