"""Prompts, replies and tokens stay where they belong, and nothing stays for ever.

Canaries: each prompt holds a word of its own, each reply the six letters that the stand-in makes
of its prompt, and the worker's tokens are known values.
"""

import base64
import contextlib
import json
import re
import threading

import pytest
from celery import Celery

from genqueue import GenerationClient, GenerationError, Settings
from genqueue.keys import doorbell
from genqueue.keys import generation as generation_key
from genqueue.registry.submitting import doorbell_message
from genqueue_ops.standin.chat import render
from genqueue_ops.standin.prose import tag_of

from ...support.roles import as_role


@pytest.fixture(scope="module")
def heard(worker):
    """Every Celery event since the module began, as text; what Flower would know."""
    app = Celery(broker=as_role(worker.redis_url, "flower"), set_as_current=False)
    events = []
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.append})
        listener = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        listener.start()
        yield events
        receiver.should_stop = True
        listener.join(timeout=10)
        assert not listener.is_alive()
    app.close()


def contents(db):
    """Every key's content as bytes, by key; what the type allows to read."""
    found = {}
    for key in db.keys("*"):
        kind = db.type(key)
        with contextlib.suppress(KeyError):
            found[key.decode()] = repr(
                {
                    b"string": db.get,
                    b"hash": db.hgetall,
                    b"list": lambda name: db.lrange(name, 0, -1),
                    b"set": db.smembers,
                    b"zset": lambda name: db.zrange(name, 0, -1),
                    b"stream": db.xrange,
                }[kind](key)
            )
    return found


def holders(db, word):
    """The keys whose content holds ``word``, in clear or in base64 at any alignment."""
    needles = [word, *(base64.b64encode(b"x" * pad + word.encode()).decode()[4:-4] for pad in range(3))]
    return {key for key, content in contents(db).items() if any(needle in content for needle in needles)}


def canaries(prompt):
    return re.search("[0-9a-f]{32}", prompt)[0], tag_of(prompt) + "-"


def test_a_running_generation_has_its_texts_in_its_own_keys_only(client, ask, db, eventually):
    prompt = ask(tokens=5000, itl_s=0.02)
    asked, said = canaries(prompt)
    generation = client.submit(prompt)
    eventually(lambda: generation.status().completion_tokens > 8)
    own = f"genqueue:generation:{generation.id}"
    assert holders(db, asked) == {own}
    eventually(lambda: holders(db, said) == {f"{own}:log", f"{own}:text"})
    generation.cancel()
    assert holders(db, asked) == set()
    assert holders(db, said) == {f"{own}:log", f"{own}:text"}


def test_a_finished_generation_keeps_its_reply_and_no_prompt(client, ask, db):
    prompt = ask()
    asked, said = canaries(prompt)
    generation = client.submit(prompt)
    generation.result(timeout_s=10)
    assert holders(db, asked) == set()
    assert holders(db, said) == {f"genqueue:generation:{generation.id}:log", f"celery-task-meta-{generation.id}"}


def test_a_doorbell_in_its_list_carries_the_id_and_no_prompt(ask, db, settings, standin):
    tgi = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    prompt = ask()
    asked, _ = canaries(prompt)
    with GenerationClient(Settings(redis_url=settings.redis_url, generators={"unserved": tgi})) as client:
        generation = client.submit(prompt, generator="unserved", priority=3)
        (message,) = db.lrange(doorbell("unserved", 3), 0, -1)
        assert generation.id.encode() in message
        assert base64.b64decode(json.loads(message)["body"])[:7] == b"[[], {}"
        assert holders(db, asked) == {f"genqueue:generation:{generation.id}"}
        generation.cancel()
        assert holders(db, asked) == set()
    db.delete(doorbell("unserved", 3))


def run_everything(client, ask, celery_app, db, eventually):
    """Prompts that end in every way; the canaries of all of them."""
    prompts, chats, generations = [], [], []

    def submit(prompt, **options):
        prompts.append(prompt)
        generations.append(client.submit(prompt, **options))
        return generations[-1]

    submit(ask(tokens=6))
    submit(ask(tokens=6), stream=False)
    submit(ask(tokens=6), generation_kwargs={"decoder_input_details": True})
    for generator in ("endpoint", "endpoint-hub", "serverless", "keyed", "locked", "silent"):
        submit(ask(), generator=generator, deadline_s=2.0)
    submit(ask(), generation_kwargs={"top_p": 1.0})
    for script, options in (
        ({"reasoning": 3}, {}),
        ({}, {"stream": False}),
        ({"calls_tools": True}, {"tools": [{"function": {"name": "f"}}]}),
        ({"faults": [{"kind": "error", "after_tokens": 5}]}, {}),
        ({"tokens": 5000, "itl_s": 0.02, "reasoning": 2}, {"deadline_s": 0.2}),
        ({}, {"generation_kwargs": {"top_p": 1.0}}),
    ):
        chats.append(ask(**{"tokens": 9, **script}))
        generations.append(client.submit_chat([{"role": "user", "content": chats[-1]}], **options))
    for kind in ("cut", "close", "reset", "error"):
        submit(ask(tokens=9, faults=[{"kind": kind, "after_tokens": 5}]))
    submit(ask(faults=[{"kind": "status", "status": 502, "body": "busy"}]))
    submit(ask(tokens=5000, itl_s=0.02), deadline_s=0.2)
    cancelled = submit(ask(tokens=5000, itl_s=0.02))
    eventually(lambda: cancelled.status().completion_tokens > 4)
    cancelled.cancel()
    # Messages that bring their prompt along.
    chats.append(ask())
    as_chat = {"prompt": None, "messages": [{"role": "user", "content": chats[-1]}]}
    for task, more in (
        ("genqueue.generate", {}),
        ("genqueue.generate", {"generator": "tuned"}),
        ("genqueue.generate", {"generation_kwargs": {"max_tokens": 5}}),
        ("genqueue.generat", {}),
        ("genqueue.generate", as_chat),
        ("genqueue.generate", {**as_chat, "tools": 5}),
    ):
        prompts.append(ask())
        sent = celery_app.send_task(task, kwargs={"prompt": prompts[-1], **more}, queue="generate.default")
        with contextlib.suppress(Exception):
            sent.get(timeout=10)
        assert sent.state in {"SUCCESS", "FAILURE"}
    for broken in (
        b'[[], {"prompt": "%s"}',
        b'{"prompt": "%s"}',
        b'[["%s"], [], {}]',
    ):
        prompts.append(ask())
        message = json.loads(doorbell_message(prompts[-1][-40:-4], "default", 5))
        message["body"] = base64.b64encode(broken % prompts[-1][:60].encode()).decode()
        db.lpush(doorbell("default", 5), json.dumps(message))
    prompts.append(ask())
    db.lpush(doorbell("default", 5), json.dumps({"prompt": prompts[-1]}))
    prompts.append(ask())
    db.lpush(doorbell("default", 5), prompts[-1])
    eventually(lambda: db.llen(doorbell("default", 5)) == 0)
    for generation in generations:
        with contextlib.suppress(GenerationError):
            generation.result(timeout_s=15)
    last = ask()
    client.submit(last).result(timeout_s=10)
    said = [tag_of(render([{"role": "user", "content": prompt}])) + "-" for prompt in chats]
    return [*said, *(word for prompt in [*prompts, *chats] for word in canaries(prompt))]


def test_neither_log_nor_events_hold_a_prompt_a_reply_or_a_token(
    client, ask, celery_app, db, eventually, worker, heard
):
    words = run_everything(client, ask, celery_app, db, eventually)
    last = client.submit(ask())
    last.result(timeout_s=10)
    eventually(lambda: any(event.get("uuid") == last.id and "succeeded" in event["type"] for event in heard))
    events, log = repr(heard), worker.log
    tokens = ["canary-standin-key-0003", "hf_canaryApiToken0001", "hf_canaryHubToken0002", "canary-other-token-0004"]
    assert last.id in log
    assert '"level": "debug"' in log
    assert [word for word in [*words, *tokens] if word in log] == []
    assert [word for word in [*words, *tokens] if word in events] == []
    everything = repr(contents(db))
    assert [token for token in tokens if token in everything] == []


QUOTED = [
    ({"kind": "status", "status": 500, "body": "broken"}, "GenerationFailedError('HTTP 500')", "HTTP 500"),
    ({"kind": "status", "status": 422, "body": "refused"}, "GenerationRejectedError('HTTP 422')", ""),
    ({"kind": "error", "after_tokens": 3}, "GenerationFailedError('generation')", "generation"),
]


@pytest.mark.parametrize("as_chat", [False, True], ids=["prompt", "chat"])
@pytest.mark.parametrize(("fault", "shown", "trouble"), QUOTED, ids=["failed", "refused", "in-stream"])
def test_a_server_that_quotes_all_it_was_sent_is_quoted_to_the_caller_only_and_without_the_token(
    client, ask, db, eventually, worker, heard, celery_app, fault, shown, trouble, as_chat
):
    """Redis, the caller's error by either way, events, what workers say of their servers, the log."""
    prompt = ask(faults=[{**fault, "quotes": True}])
    asked, _ = canaries(prompt)
    submit = {True: lambda: client.submit_chat([{"role": "user", "content": prompt}], generator="keyed")}
    generation = submit.get(as_chat, lambda: client.submit(prompt, generator="keyed"))()
    with pytest.raises(GenerationError) as ended:
        generation.result(timeout_s=15)
    failed = eventually(
        lambda: [each for each in list(heard) if each.get("uuid") == generation.id and each["type"] == "task-failed"]
    )
    if not as_chat or fault["kind"] == "status":  # TGI's chat says in a stream neither of what kind an error is
        assert [each["exception"] for each in failed] == [shown]
    assert asked not in repr(failed)
    with pytest.raises(GenerationError) as by_celery:
        celery_app.AsyncResult(generation.id).get(timeout=30)
    for error in (ended.value, by_celery.value):
        assert asked in str(error)
        assert "***" in str(error)
    own = f"genqueue:generation:{generation.id}"
    assert holders(db, asked) <= {own, f"{own}:log", f"celery-task-meta-{generation.id}"}
    assert holders(db, "canary-standin-key") == set()

    def told():
        return [each["trouble"] for one in client.workers() for each in one.generators["keyed"]]

    if not as_chat:
        eventually(lambda: told() == [trouble])
    assert asked not in worker.log
    assert "canary-standin-key" not in worker.log


def test_a_worker_that_is_asked_what_it_does_shows_no_prompt_and_no_password(
    worker, celery_app, ask, eventually, client, db
):
    prompt = ask(tokens=5000, itl_s=0.02)
    sent = celery_app.send_task("genqueue.generate", kwargs={"prompt": prompt}, queue="generate.default")
    app = Celery(broker=as_role(worker.redis_url, "flower"), set_as_current=False)
    eventually(lambda: int(db.hget(generation_key(sent.id), "completion_tokens") or 0) > 4)
    look = app.control.inspect(timeout=5, limit=1)
    shown = {
        name + "".join(options): repr(look._request(name, **options))
        for name, options in (
            ("active", {}),
            ("active", {"safe": True}),
            ("reserved", {}),
            ("scheduled", {}),
            ("query_task", {"ids": [sent.id]}),
            ("conf", {"with_defaults": True}),
            ("stats", {}),
            ("report", {}),
            ("registered", {"taskinfoitems": ["Request", "app", "request", "backend"], "builtins": True}),
        )
    }
    client.generation(sent.id).cancel()
    app.close()
    assert all(sent.id in shown[name] for name in ("active", "activesafe", "query_taskids"))
    words = [*canaries(prompt), "canary-"]
    assert [(name, word) for name, text in shown.items() for word in words if word in text] == []


def test_every_key_of_ours_has_an_end(client, ask, celery_app, db, eventually):
    run_everything(client, ask, celery_app, db, eventually)
    client.submit(ask(), idempotency_key="a-key").result(timeout_s=10)
    endless = {key.decode() for key in db.keys("*") if db.ttl(key) == -1}
    celerys = re.compile(r"_kombu\.binding.*|generate\..*|unacked.*|.*\.celery\.pidbox|celeryev\..*|.*\.reply\..*")
    assert {key for key in endless if not celerys.fullmatch(key)} == set()
    assert not db.exists("unacked"), "a message was taken and never acked"
