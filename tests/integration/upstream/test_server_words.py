"""A server that ends with what it was sent as its finish_reason: none of it gets where the caller alone may look."""

import json
import threading

import pytest
from celery import Celery

from genqueue import GenerationClient, GenerationRejectedError, Settings

from ...support.roles import as_role
from ...support.small_servers import Answering, served

TOKEN, HEADER, PROMPT = "hf_canaryoftokencanaryoftoken", "canary-of-header", "canary-of-prompt"


class Quoting(Answering):
    """Answers prompts and chats with one word, and a finish_reason that quotes the whole call."""

    def do_GET(self):
        self.answer(200, "text/plain", b"")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        quoted = " ".join([self.headers["authorization"], self.headers["x-key"], PROMPT])
        if "fault" in str(asked):
            body = json.dumps({"fault": {"faultstring": quoted, "detail": {"status": 401}}}).encode()
            self.answer(200, "application/json", body)
            return
        if "messages" in asked:
            events = [
                {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}]},
                {"choices": [{"index": 0, "delta": {}, "finish_reason": quoted}]},
            ]
        else:
            token = {"id": 1, "text": "hi", "logprob": -1.0, "special": False}
            details = {"finish_reason": quoted, "generated_tokens": 1, "seed": None, "input_length": 1}
            events = [{"token": token, "index": 1, "generated_text": "hi", "details": details}]
        body = b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events)
        self.answer(200, "text/event-stream", body + (b"data: [DONE]\n\n" if "messages" in asked else b""))


@pytest.fixture
def quoting_url():
    with served(Quoting) as url:
        yield url


def test_what_a_server_quotes_at_its_end_is_masked_for_the_caller_and_told_to_nobody_else(
    start_worker, quoting_url, own_redis, eventually
):
    params = {"url": quoting_url, "headers": {"x-key": HEADER}}
    generators = {
        "quoting": {"api_type": "text_generation_inference", "api_params": params, "token_env": ["KEY"]},
    }
    worker = start_worker(generators, own_redis.url, "-l", "debug", environ={"KEY": TOKEN})
    app = Celery(broker=as_role(own_redis.url, "flower"), set_as_current=False)
    heard = []
    with (
        app.connection() as connection,
        GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client,
    ):
        receiver = app.events.Receiver(connection, handlers={"*": heard.append})
        listener = threading.Thread(target=receiver.capture, kwargs={"wakeup": True})
        listener.start()
        try:
            eventually(lambda: any(event["type"] == "worker-heartbeat" for event in heard))
            for generation in (
                client.submit(PROMPT, generator="quoting"),
                client.submit_chat([{"role": "user", "content": PROMPT}], generator="quoting"),
            ):
                meta = generation.result(timeout_s=20).meta[0]
                assert meta["finish_reason"] == f"Bearer *** *** {PROMPT}"
                (last,) = [event for event in generation.events() if event.type == "finished"]
                assert last.finish_reason == "_OTHER"
                eventually(lambda one=generation: f'"{one.id}"' in worker.log and "_OTHER" in worker.log)
                eventually(
                    lambda one=generation: any(
                        event["type"] == "task-succeeded" and event["uuid"] == one.id for event in heard
                    )
                )
        finally:
            receiver.should_stop = True
            listener.join(timeout=10)
    app.close()
    assert "_OTHER" in str(heard)
    for canary in (TOKEN, HEADER, PROMPT):
        assert canary not in worker.log
        assert canary not in str(heard)


def test_what_a_server_quotes_in_an_error_of_any_shape_is_masked(start_worker, quoting_url, own_redis):
    """With status 200, and another one within it, which says whose fault it is."""
    params = {"url": quoting_url, "headers": {"x-key": HEADER}}
    generators = {
        "quoting": {"api_type": "text_generation_inference", "api_params": params, "token_env": ["KEY"]},
    }
    worker = start_worker(generators, own_redis.url, "-l", "debug", environ={"KEY": TOKEN})
    with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client:
        for generation in (
            client.submit("fault", generator="quoting"),
            client.submit_chat([{"role": "user", "content": "fault"}], generator="quoting"),
        ):
            with pytest.raises(GenerationRejectedError) as rejected:
                generation.result(timeout_s=20)
            assert str(rejected.value) == f"Bearer *** *** {PROMPT}"
            assert (rejected.value.detail["status"], rejected.value.detail["fault"]) == (401, "endpoint")
    for canary in (TOKEN, HEADER, PROMPT):
        assert canary not in worker.log
