"""Bad input harms nothing: whoever sent it gets an answer, and the worker goes on."""

import base64
import gc
import json
import pickle
import subprocess
import sys
import time
import uuid

import pytest
from celery.exceptions import TimeoutError as CeleryTimeoutError

from genqueue import (
    AsyncGenerationClient,
    GenerationClient,
    GenerationExpiredError,
    GenerationFailedError,
    GenerationRejectedError,
    InvalidRequestError,
    RedisUnavailableError,
    Settings,
)
from genqueue.keys import doorbell
from genqueue.registry.submitting import doorbell_message
from genqueue.wire.request import GenerationKwargs
from genqueue_ops.local_redis import local_redis
from genqueue_ops.standin.chat import render
from genqueue_ops.standin.prose import expected_text

from ...support.programs import plain_celery


@pytest.fixture
def lives(client, ask, worker):
    """``lives()``: the worker still does its work, and is still the same process."""

    def check():
        prompt = ask(tokens=3)
        assert client.submit(prompt).result(timeout_s=10).replies == [prompt.answer]
        assert worker.process.poll() is None

    return check


# --- foreign messages that are no request ------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "words"),
    [
        pytest.param({"kwargs": {}}, "prompt: needed, or messages", id="no-prompt"),
        pytest.param({"kwargs": {"messages": []}}, "messages: at least one is needed", id="no-messages"),
        pytest.param({"kwargs": {"messages": [{"role": "user"}]}}, "messages.0: content: needed", id="empty-message"),
        pytest.param({"kwargs": {"prompt": ""}}, "prompt: ", id="empty-prompt"),
        pytest.param({"kwargs": {"prompt": 5}}, "prompt: ", id="prompt-is-no-string"),
        pytest.param({"kwargs": {"prompt": "x", "temprature": 1}}, "temprature: ", id="unknown-field"),
        pytest.param(
            {"kwargs": {"prompt": "x", "generation_kwargs": {"max_tokens": 4}}},
            "generation_kwargs.max_tokens: unknown; known: adapter_id, ",
            id="unknown-generation-kwarg",
        ),
        pytest.param({"kwargs": {"prompt": "x", "stop_words": "x"}}, "stop_words: ", id="wrong-type"),
        pytest.param({"args": ["x"]}, "args: ", id="positional"),
        pytest.param({"kwargs": {"prompt": "x", "v": 2}}, "v: ", id="newer-version"),
    ],
)
def test_a_foreign_message_that_is_no_request_is_answered(celery_app, client, lives, message, words):
    if not message.get("kwargs") and not message.get("args"):
        message = {"kwargs": {"stream": True}}  # no kwargs at all is a doorbell, not a request
    sent = celery_app.send_task("genqueue.generate", queue="generate.default", **message)
    with pytest.raises(GenerationRejectedError) as rejected:
        sent.get(timeout=10)
    assert words in str(rejected.value)
    assert sent.state == "FAILURE"
    generation = client.generation(sent.id)
    (failed,) = generation.events()
    assert (failed.type, failed.error) == ("failed", "rejected")
    assert words in failed.message
    assert generation.status().state == "failed"
    with pytest.raises(GenerationRejectedError):
        generation.result(timeout_s=10)
    lives()


def test_known_generation_kwargs_are_all_named(celery_app):
    kwargs = {"prompt": "x", "generation_kwargs": {"nonsense": 1}}
    sent = celery_app.send_task("genqueue.generate", queue="generate.default", kwargs=kwargs)
    with pytest.raises(GenerationRejectedError) as rejected:
        sent.get(timeout=10)
    assert all(name in str(rejected.value) for name in GenerationKwargs.model_fields)


def envelope(generation_id=None, **changes):
    """A Celery message as it lies in the list, some of it changed."""
    message = json.loads(doorbell_message(generation_id or str(uuid.uuid4()), "default", 5))
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = message
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return message


def b64(raw):
    return base64.b64encode(raw).decode()


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(b"garbage", id="no-json"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe\x00", id="no-utf8"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"17", id="number"),
        pytest.param(b'"text"', id="string"),
        pytest.param(b"{}", id="no-fields"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(json.dumps({"prompt": "x"}).encode(), id="a-bare-request"),
        pytest.param(json.dumps(envelope(headers=...)).encode(), id="no-headers"),
        pytest.param(json.dumps(envelope(headers=None)).encode(), id="headers-null"),
        pytest.param(json.dumps(envelope(headers__id=...)).encode(), id="no-id"),
        pytest.param(json.dumps(envelope(headers__id=5)).encode(), id="id-is-a-number"),
        pytest.param(json.dumps(envelope(headers__task=...)).encode(), id="no-task"),
        pytest.param(json.dumps(envelope(properties=...)).encode(), id="no-properties"),
        pytest.param(json.dumps(envelope(properties__delivery_tag=...)).encode(), id="no-delivery-tag"),
        pytest.param(json.dumps(envelope(properties__delivery_info=...)).encode(), id="no-delivery-info"),
        pytest.param(json.dumps(envelope(properties__delivery_info={})).encode(), id="no-routing-key"),
        pytest.param(json.dumps(envelope(properties__delivery_info__routing_key=7)).encode(), id="routing-key-number"),
        pytest.param(json.dumps(envelope(properties__delivery_info__routing_key="other")).encode(), id="other-key"),
        pytest.param(json.dumps(envelope(properties__body_encoding="rot13")).encode(), id="unknown-encoding"),
        pytest.param(json.dumps(envelope(body="*** not base64 ***")).encode(), id="body-no-base64"),
        pytest.param(json.dumps(envelope(body=5)).encode(), id="body-number"),
        pytest.param(json.dumps(envelope(**{"content-encoding": "nonsense"})).encode(), id="content-encoding"),
        pytest.param(json.dumps(envelope(**{"content-encoding": None})).encode(), id="content-encoding-null"),
        pytest.param(json.dumps(envelope(**{"content-type": 7})).encode(), id="content-type-number"),
        pytest.param(json.dumps(envelope(headers__retries="many")).encode(), id="retries-text"),
        pytest.param(json.dumps(envelope(headers__timelimit=7)).encode(), id="timelimit-number"),
        pytest.param(json.dumps(envelope(headers__timelimit=[])).encode(), id="timelimit-empty"),
        pytest.param(json.dumps(envelope(headers__eta="yesterday")).encode(), id="eta-text"),
        pytest.param(json.dumps(envelope(headers__expires="never")).encode(), id="expires-text"),
        pytest.param(json.dumps(envelope(headers__group=7)).encode(), id="group-number"),
        pytest.param(json.dumps(envelope(properties__reply_to=[1])).encode(), id="reply-to-list"),
        pytest.param(json.dumps(envelope(properties__priority="high")).encode(), id="priority-text"),
        pytest.param(json.dumps(envelope(headers__stamps=3, headers__stamped_headers=3)).encode(), id="stamps"),
    ],
)
def test_an_entry_that_is_no_celery_message_is_survived(db, lives, worker, eventually, entry):
    queue = doorbell("default", 5)
    db.lpush(queue, entry)
    eventually(lambda: db.llen(queue) == 0)
    lives()
    assert "Unrecoverable error" not in worker.log


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"no json", id="no-json"),
        pytest.param(b"{}", id="object"),
        pytest.param(b"[]", id="empty-list"),
        pytest.param(b"[1,2,3]", id="numbers"),
        pytest.param(b"[[], [], {}]", id="kwargs-list"),
        pytest.param(b"[{}, {}, {}]", id="args-object"),
        pytest.param(b"[[], {}, 7]", id="embed-number"),
        pytest.param(b"[[], {}]", id="two-parts"),
        pytest.param(b"\xff", id="no-utf8"),
    ],
)
def test_a_message_with_an_alien_body_is_answered(db, lives, client, eventually, body):
    message = envelope(body=b64(body))
    generation_id = message["headers"]["id"]
    db.lpush(doorbell("default", 5), json.dumps(message))
    eventually(lambda: db.get(f"celery-task-meta-{generation_id}"), what="an answer")
    with pytest.raises(GenerationRejectedError, match="the message is no task"):
        client.generation(generation_id).result(timeout_s=10)
    lives()


def test_an_unregistered_task_is_answered(celery_app, client, lives):
    sent = celery_app.send_task("somebody.elses.task", queue="generate.default", args=[1, 2])
    with pytest.raises(Exception, match=r"somebody.elses.task|no task"):
        sent.get(timeout=10)
    assert sent.state == "FAILURE"
    with pytest.raises(GenerationRejectedError):
        list(client.generation(sent.id).stream())
    lives()


class Bomb:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return (open, (str(self._path), "w"))


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/x-yaml", "text/plain"])
def test_what_is_not_json_is_never_decoded(db, lives, client, tmp_path, eventually, content_type):
    bomb = tmp_path / "bomb"
    raw = pickle.dumps([[], {"prompt": Bomb(bomb)}, {}])
    message = envelope(**{"content-type": content_type, "content-encoding": "binary", "body": b64(raw)})
    db.lpush(doorbell("default", 5), json.dumps(message))
    generation_id = message["headers"]["id"]
    eventually(lambda: db.get(f"celery-task-meta-{generation_id}"), what="an answer")
    with pytest.raises(GenerationRejectedError, match="the message is no task"):
        client.generation(generation_id).result(timeout_s=10)
    assert not bomb.exists()
    lives()


def test_a_broken_message_with_the_id_of_a_generation_does_not_touch_it(db, client, ask, lives, worker, eventually):
    prompt = ask(tokens=60, itl_s=0.02)
    generation = client.submit(prompt)
    eventually(lambda: generation.status().completion_tokens > 2)
    db.lpush(doorbell("default", 5), json.dumps(envelope(generation.id, body=b64(b"no json"))))
    lives()
    assert generation.result(timeout_s=10).replies == [prompt.answer]


def test_a_registered_request_that_cannot_be_read_fails(db, client, ask, lives, eventually):
    # A newer producer's waits for a newer worker (test_versions.py); this is wrong in any version.
    generation_id = str(uuid.uuid4())
    db.hset(
        f"genqueue:generation:{generation_id}",
        mapping={
            "state": "queued",
            "generator": "default",
            "request": json.dumps({"v": 0, "prompt": "x"}),
            "priority": 5,
            "attempt": 0,
            "seq": 0,
            "flush": 0,
            "submitted_at": f"{time.time():f}",
        },
    )
    db.expire(f"genqueue:generation:{generation_id}", 600)
    db.lpush(doorbell("default", 5), doorbell_message(generation_id, "default", 5))
    with pytest.raises(GenerationRejectedError, match="v: "):
        client.generation(generation_id).result(timeout_s=10)
    lives()


# --- what the model server refuses or breaks ---------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no-stream"])
def test_a_422_in_the_stream_reaches_the_caller_in_the_servers_words(client, ask, stream, celery_app):
    generation = client.submit(ask(), generation_kwargs={"top_p": 1.0}, stream=stream)
    words = "Input validation error: `top_p` must be > 0.0 and < 1.0"
    with pytest.raises(GenerationRejectedError) as rejected:
        generation.result(timeout_s=10)
    assert words in str(rejected.value)
    assert rejected.value.partial_text == ""
    assert rejected.value.attempts == 1
    with pytest.raises(GenerationRejectedError) as streamed:
        list(generation.stream())
    assert words in str(streamed.value)
    with pytest.raises(GenerationRejectedError) as by_celery:
        celery_app.AsyncResult(generation.id).get(timeout=30)
    assert words in str(by_celery.value)
    assert words in generation.status().error


def test_a_request_past_a_bound_is_refused_before_it_is_sent(settings, ask, db):
    bound = settings.model_copy(update={"max_prompt_bytes": 1000, "max_request_bytes": 2000})
    with GenerationClient(bound) as client:
        with pytest.raises(InvalidRequestError, match="prompt: has 1001 bytes, max_prompt_bytes is 1000"):
            client.submit("x" * 1001)
        with pytest.raises(InvalidRequestError, match=r"request: has \d+ bytes, max_request_bytes is 2000"):
            client.submit_chat([{"role": "user", "content": "x"}], tools=[{"function": {"name": "f" * 2000}}])
        with pytest.raises(InvalidRequestError, match="messages: has 1001 bytes, max_prompt_bytes is 1000"):
            client.submit_chat([{"role": "user", "content": "x" * 1001}])
        with pytest.raises(InvalidRequestError, match="max_new_tokens: is 1000001, max_completion_tokens is 1000000"):
            client.submit("x", generation_kwargs={"max_new_tokens": 1_000_001})


@pytest.fixture(scope="module")
def bounded(launch_worker, queue_redis, standin):
    """A worker with narrow bounds, at a database of its own."""
    environ = {"GENQUEUE_MAX_REPLY_BYTES": "2000", "GENQUEUE_MAX_PROMPT_BYTES": "1000"}
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    url = queue_redis.url.removesuffix("/0") + "/7"
    worker = launch_worker({"default": generator}, url, "-c", "4", environ=environ)
    yield worker
    assert worker.end() == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no-stream"])
@pytest.mark.parametrize("chat", [False, True], ids=["prompt", "chat"])
def test_a_reply_past_its_bound_is_cut_off_and_kept(bounded, ask, standin, eventually, stream, chat):
    """By a server that never ends, for instance."""
    prompt = ask(tokens=5000, itl_s=0.001)
    with GenerationClient(Settings(redis_url=bounded.producer_url, generators={})) as client:
        messages = [{"role": "user", "content": prompt}]
        generation = client.submit_chat(messages, stream=stream) if chat else client.submit(prompt, stream=stream)
        with pytest.raises(GenerationRejectedError) as cut:
            generation.result(timeout_s=20)
    assert str(cut.value) == "reply: has more than 2000 bytes, which is max_reply_bytes"
    assert cut.value.usage["completion_tokens"] > 10
    given = render(messages) if chat else prompt
    assert expected_text(given, 100_000, tokens=5000).startswith(cut.value.partial_text)
    calls = standin.chats if chat else standin.attempts
    eventually(lambda: calls(prompt)[-1]["state"] == "dropped")


def test_a_foreign_request_past_a_bound_is_answered(bounded):
    with plain_celery(bounded.producer_url) as app:
        sent = app.send_task("genqueue.generate", kwargs={"prompt": "x" * 1001}, queue="generate.default")
        with pytest.raises(GenerationRejectedError, match="prompt: has 1001 bytes, max_prompt_bytes is 1000"):
            sent.get(timeout=10)


def test_a_422_over_http_reaches_the_caller_too(client, ask):
    generation = client.submit(ask(), generation_kwargs={"best_of": 2})  # greedy: refused, and a one-shot call
    with pytest.raises(GenerationRejectedError, match="must use sampling when `best_of` is > 1") as rejected:
        generation.result(timeout_s=10)
    assert rejected.value.detail["status"] == 422


def test_a_missing_token_is_the_requests_end(client, ask, worker):
    generation = client.submit(ask(), generator="locked")
    with pytest.raises(GenerationRejectedError, match="401") as rejected:
        generation.result(timeout_s=10)
    assert rejected.value.detail["status"] == 401


@pytest.mark.parametrize("one_shot", [False, True], ids=["stream", "one-shot"])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": "status", "status": 503, "body": "scaling up"}, id="503-text"),
        pytest.param({"kind": "status", "status": 503}, id="503-empty"),
        pytest.param(
            {"kind": "status", "status": 429, "body": {"error": "Model is overloaded", "error_type": "overloaded"}},
            id="429",
        ),
    ],
)
def test_a_server_that_has_no_room_is_waited_for_until_the_deadline(client, ask, fault, one_shot):
    generation_kwargs = {"decoder_input_details": True} if one_shot else None
    generation = client.submit(ask(faults=[fault]), generation_kwargs=generation_kwargs, deadline_s=1.5)
    with pytest.raises(GenerationExpiredError):
        generation.result(timeout_s=10)


@pytest.mark.parametrize("one_shot", [False, True], ids=["stream", "one-shot"])
@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        pytest.param(
            {"kind": "status", "status": 502, "body": "<html><h1>Bad Gateway</h1></html>"},
            GenerationFailedError,
            "HTTP 502",
            id="502-page",
        ),
        pytest.param({"kind": "status", "status": 404}, GenerationRejectedError, "HTTP 404", id="404"),
        pytest.param(
            {"kind": "status", "status": 400, "body": {"error": "bad thing"}},
            GenerationRejectedError,
            "bad thing",
            id="400",
        ),
        pytest.param(
            {
                "kind": "status",
                "status": 400,
                "body": {"error": "The following `model_kwargs` are not used by the model: ['details']"},
            },
            GenerationRejectedError,
            "model_kwargs",
            id="400-model-kwargs",
        ),
        pytest.param(
            {"kind": "refuse"},
            GenerationFailedError,
            "the way to the server failed",
            id="reset",
        ),
        pytest.param({"kind": "error"}, GenerationFailedError, "told to fail", id="error"),
    ],
)
def test_an_error_before_the_first_token_has_its_type_and_words(client, ask, fault, error, words, one_shot):
    generation_kwargs = {"decoder_input_details": True} if one_shot else None
    generation = client.submit(ask(faults=[fault]), generation_kwargs=generation_kwargs)
    with pytest.raises(error) as caught:
        generation.result(timeout_s=10)
    assert words in str(caught.value)
    assert "<html" not in str(caught.value)
    assert caught.value.partial_text == ""


def test_nobody_listens_there(client, ask, lives):
    """It waits for its server (test_endpoints.py shows how one comes back), and costs the others nothing."""
    generation = client.submit(ask(), generator="silent", deadline_s=1.0)
    with pytest.raises(GenerationExpiredError) as expired:
        generation.result(timeout_s=10)
    assert expired.value.attempts == 0
    lives()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no-stream"])
@pytest.mark.parametrize("kind", ["cut", "close", "reset", "error"])
def test_a_stream_that_breaks_off_fails_with_its_text_kept(client, ask, kind, stream):
    prompt = ask(tokens=20, itl_s=0.02, faults=[{"kind": kind, "after_tokens": 7}])
    generation = client.submit(prompt, stream=stream)
    chunks = []
    with pytest.raises(GenerationFailedError) as failed:
        chunks.extend(generation.stream())
    seen = []
    with pytest.raises(GenerationFailedError) as failed_again:
        for chunk in generation.stream():
            seen.append(chunk.text)
    assert failed.value.partial_text == failed_again.value.partial_text == prompt.beginning(7)
    assert "".join(seen) == prompt.beginning(7)
    assert failed.value.usage["completion_tokens"] == 7
    with pytest.raises(GenerationFailedError) as by_result:
        generation.result(timeout_s=10)
    assert by_result.value.partial_text == prompt.beginning(7)
    if kind == "cut":
        assert "without its end marker" in str(failed.value)


@pytest.mark.parametrize("after_tokens", [0, 3])
def test_a_server_that_falls_silent_is_given_up_after_its_timeout(client, ask, standin, after_tokens, eventually):
    prompt = ask(tokens=20, faults=[{"kind": "stall", "after_tokens": after_tokens}])
    began_s = time.monotonic()
    generation = client.submit(prompt, generator="impatient")
    with pytest.raises(GenerationFailedError, match="fell silent") as failed:
        generation.result(timeout_s=10)
    assert 0.4 <= time.monotonic() - began_s < 5
    assert failed.value.partial_text == prompt.beginning(after_tokens)
    eventually(lambda: standin.only(prompt)["state"] == "dropped")


# --- Redis away --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_redis(real_redis):
    """The settings of a producer whose Redis refuses connections; the password must not show."""
    with local_redis() as server:
        server.stop()
        yield Settings(redis_url=server.url.replace("redis://", "redis://:hidden-password@"), generators={})


@pytest.fixture(scope="module")
def frozen_redis(real_redis):
    """The settings of a producer whose Redis takes connections and never answers."""
    with local_redis() as server:
        server.pause()
        yield Settings(redis_url=server.url.replace("redis://", "redis://:hidden-password@"), generators={})


@pytest.fixture
def tidy_up():
    """What a test leaves is collected at its end, not within another one."""
    yield
    gc.collect()


def assert_soon_unavailable(error, began_s, settings):
    assert time.monotonic() - began_s < 8  # 5, and what a busy machine adds
    port = int(settings.redis_url.rsplit(":", 1)[1].removesuffix("/0"))
    assert (error.host, error.port) == ("127.0.0.1", port)
    assert f"127.0.0.1:{port}" in str(error)
    assert "hidden-password" not in str(error)


@pytest.mark.usefixtures("tidy_up")
@pytest.mark.parametrize(
    ("how", "verb"),
    [
        *(("stopped_redis", verb) for verb in ("submit", "result", "stream", "status", "cancel")),
        *(("frozen_redis", verb) for verb in ("submit", "result")),  # 4 s each
    ],
)
def test_without_redis_every_verb_says_so_within_five_seconds(request, how, verb):
    lost_redis = request.getfixturevalue(how)
    with GenerationClient(lost_redis) as client:
        generation = client.generation("some-id")
        verbs = {
            "submit": lambda: client.submit("Hello"),
            "result": lambda: generation.result(timeout_s=30),
            "stream": lambda: list(generation.stream()),
            "status": generation.status,
            "cancel": generation.cancel,
        }
        began_s = time.monotonic()
        with pytest.raises(RedisUnavailableError) as unavailable:
            verbs[verb]()
        assert_soon_unavailable(unavailable.value, began_s, lost_redis)


@pytest.mark.usefixtures("tidy_up")
@pytest.mark.parametrize(
    ("how", "verb"),
    [*(("stopped_redis", verb) for verb in ("submit", "result", "stream")), ("frozen_redis", "stream")],
)
async def test_without_redis_the_async_client_says_so_too(request, how, verb):
    lost_redis = request.getfixturevalue(how)
    async with AsyncGenerationClient(lost_redis) as client:
        generation = client.generation("some-id")

        async def stream():
            async for _ in generation.stream():
                pass

        verbs = {"submit": lambda: client.submit("Hello"), "result": generation.result, "stream": stream}
        began_s = time.monotonic()
        with pytest.raises(RedisUnavailableError) as unavailable:
            await verbs[verb]()
        assert_soon_unavailable(unavailable.value, began_s, lost_redis)


def test_a_reader_that_finds_no_redis_leaves_no_traceback_behind(closed_port):
    program = (
        "import sys, contextlib\n"
        "from genqueue import GenerationClient, RedisUnavailableError, Settings\n"
        "with GenerationClient(Settings(redis_url=sys.argv[1], generators={})) as client:\n"
        "    for _ in range(3):\n"
        "        with contextlib.suppress(RedisUnavailableError):\n"
        "            client.generation('some-id').result(timeout_s=1)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, f"redis://127.0.0.1:{closed_port}/0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_celery_does_not_wait_for_ever_where_nobody_answers(celery_app):
    # What the tests above rely on: get() really waits for an answer of the worker.
    with pytest.raises(CeleryTimeoutError):
        celery_app.AsyncResult(str(uuid.uuid4())).get(timeout=0.2)
