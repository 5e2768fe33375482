"""Serverless models: a Hub and a router of this machine answer as Hugging Face's do (serverless_router.py)."""

import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from genqueue import GenerationClient, GenerationError, GenerationFailedError, GenerationRejectedError, Settings
from genqueue_ops.standin.chat import render
from genqueue_ops.standin.prose import expected_text

from ...support.serverless_router import TOKEN, hugging_face_beside

OTHER_TOKEN = "hf_canaryServerless0006"
ROUTER = "router.huggingface.co:443"


def user(prompt):
    return [{"role": "user", "content": prompt}]


def chat_answer(prompt):
    return expected_text(render(user(prompt)), 100_000, tokens=prompt.tokens)


@pytest.fixture(scope="module")
def hugging_face(standin):
    with hugging_face_beside(standin.url) as place:
        yield place


def generators():
    def model(name, **more):
        return {"api_type": "serverless_inference_api", "api_params": {"model": name, **more}, "max_attempts": 2}

    return {
        "slow": model("our/slow", provider="hf-inference"),
        "ours": model("our/model", provider="hf-inference", bill_to="our-company"),
        "anybodys": model("our/chats"),
        "together": model("our/chats", provider="together"),
        "texts": model("our/texts", provider="together"),
        "pictures": model("our/pictures", provider="hf-inference"),
        "gated": model("our/gated", provider="hf-inference"),
        "typo": model("our/mdoel", provider="hf-inference"),
        "chat-typo": model("our/mdoel"),
        "elsewhere": model("our/model", provider="groq"),
        "poor": model("our/poor", provider="hf-inference"),
        "keyless": {**model("our/model", provider="hf-inference"), "token_env": ["WRONG_TOKEN"]},
    }


@pytest.fixture(scope="module")
def environ(hugging_face, tmp_path_factory):
    return {
        **hugging_face.environ(tmp_path_factory.mktemp("ca") / "ca.pem"),
        "HF_TOKEN": OTHER_TOKEN,  # HF_API_TOKEN goes before
        "WRONG_TOKEN": "hf_canaryServerless0007",
    }


@pytest.fixture(scope="module")
def worker(launch_worker, queue_redis, environ):
    started = launch_worker(generators(), queue_redis.url.removesuffix("/0") + "/5", "-c", "8", environ=environ)
    yield started
    started.end()


@pytest.fixture
def client(worker):
    with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as opened:
        yield opened


def calls_of(hugging_face, start):
    return [(path, headers) for method, path, *headers in hugging_face.seen[start:] if headers and method == "POST"]


def test_a_prompt_goes_to_the_router_with_its_token_and_streams(client, hugging_face, ask):
    start, prompt = len(hugging_face.seen), ask(tokens=8)
    generation = client.submit(prompt, generator="ours")
    assert [chunk.text for chunk in generation.stream() if chunk.text] and generation.result().replies == [
        prompt.answer
    ]
    assert generation.result().meta[0]["model"] == "our/model"
    ((path, (headers,)),) = calls_of(hugging_face, start)
    assert (path, headers["Authorization"]) == ("/hf-inference/models/our/model", f"Bearer {TOKEN}")
    assert headers["X-HF-Bill-To"] == "our-company"
    assert ("CONNECT", ROUTER) in hugging_face.seen


@pytest.mark.parametrize(
    ("generator", "path"), [("anybodys", "/v1/chat/completions"), ("together", "/together/v1/chat/completions")]
)
def test_a_chat_goes_to_whoever_serves_the_model(client, hugging_face, ask, generator, path):
    start, prompt = len(hugging_face.seen), ask(tokens=8)
    result = client.submit_chat(user(prompt), generator=generator).result(timeout_s=30)
    assert result.replies == [chat_answer(prompt)] and result.meta[0]["model"] == "our/chats"
    assert [called for called, _ in calls_of(hugging_face, start)] == [path]


def test_a_prompt_of_a_provider_streams_too(client, hugging_face, ask):
    start, prompt = len(hugging_face.seen), ask(tokens=300, itl_s=0.05)
    kwargs = {"max_new_tokens": 8, "decoder_input_details": True}
    generation = client.submit(prompt, generator="texts", generation_kwargs=kwargs, stop_words=["§"])
    chunks = [chunk.text for chunk in generation.stream() if chunk.text]
    assert "".join(chunks) == prompt.beginning(8) and len(chunks) > 1
    (meta,) = generation.result().meta
    assert (meta["model"], meta["finish_reason"], meta["usage"]["completion_tokens"]) == ("our/texts", "length", 8)
    assert meta["usage"]["prompt_tokens"] > 0
    assert [called for called, _ in calls_of(hugging_face, start)] == ["/together/v1/completions"]
    body = hugging_face.bodies[-1]
    assert (body["model"], body["stop"], body["max_tokens"]) == ("together/its-own-name", ["§"], 8)
    assert body.keys().isdisjoint({"details", "return_full_text", "decoder_input_details"})


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": "error"}, id="error"),
        pytest.param({"kind": "cut"}, id="cut"),
        pytest.param({"kind": "error", "error_type": "finish_reason", "error": "abort"}, id="given-up"),
    ],
)
def test_a_prompt_of_a_provider_goes_on_where_it_broke_off(client, ask, fault):
    prompt = ask(tokens=9, faults=[{**fault, "after_tokens": 5, "times": 1}])
    generation = client.submit(prompt, generator="texts")
    assert "".join(chunk.text for chunk in generation.stream()) == prompt.answer
    assert "resumed" in [event.type for event in generation.events()]
    assert generation.result().replies == [prompt.answer]


REFUSALS = [
    ("typo", "prompt", "Model our/mdoel is not on the Hub, or it is private"),
    ("pictures", "prompt", "'our/pictures' doesn't support task 'text-generation'"),
    ("pictures", "chat", "'our/pictures' doesn't support task 'conversational'"),
    ("anybodys", "prompt", "our/chats is not supported for task text-generation.*Supported task: conversational"),
    ("together", "prompt", "our/chats is not supported for task text-generation.*Supported task: conversational"),
    ("chat-typo", "chat", "The requested model 'our/mdoel' is not supported by any provider"),
    ("elsewhere", "chat", "our/model is not supported by provider groq"),
    ("poor", "prompt", r"exceeded your monthly included credits.*\(model 'our/poor', provider 'hf-inference'\)"),
    ("keyless", "prompt", r"Invalid username or password. \(model 'our/model', provider 'hf-inference'\)"),
]


@pytest.mark.parametrize(("generator", "kind", "words"), REFUSALS)
def test_what_cannot_be_served_is_refused_at_once_and_names_the_model(client, ask, generator, kind, words):
    if kind == "prompt":
        generation = client.submit(ask(), generator=generator)
    else:
        generation = client.submit_chat(user(ask()), generator=generator)
    with pytest.raises(GenerationRejectedError, match=words):
        generation.result(timeout_s=30)
    assert [event.type for event in generation.events()] == ["started", "failed"]


def test_each_model_is_checked_at_the_start_and_said_once_while_others_are_served(
    client, worker, hugging_face, ask, eventually
):
    lines = {
        "typo": "error.*Model our/mdoel is not on the Hub",
        "chat-typo": "error.*Model our/mdoel is not on the Hub",
        "gated": "error.*Model our/gated is gated, and the token has no access",
        "pictures": "error.*'our/pictures' doesn't support task",
        "elsewhere": "error.*our/model is not supported by provider groq",
        "anybodys": "warning.*serves chats only.*our/chats",
        "together": "warning.*serves chats only.*our/chats",
    }

    def said():
        return {
            name: [line for line in worker.log.splitlines() if f"generator '{name}'" in line] for name in generators()
        }

    eventually(lambda: all(said()[name] for name in lines))
    # The Hub has not answered for one of them, which kept nobody waiting.
    assert not hugging_face.lets_go.is_set()
    assert client.submit(prompt := ask(), generator="ours").result(timeout_s=30).replies == [prompt.answer]
    hugging_face.lets_go.set()
    assert client.submit(prompt := ask(), generator="slow").result(timeout_s=30).replies == [prompt.answer]
    for name, found in said().items():
        if name not in lines:
            assert found == []
            continue
        (line,) = found
        assert re.search(lines[name], line), line
    assert TOKEN not in worker.log and OTHER_TOKEN not in worker.log

    def trouble(generator):
        (status,) = client.workers()
        return status.generators[generator][0]["trouble"]

    eventually(lambda: "gated" in trouble("gated"))
    assert trouble("ours") == ""


def test_a_hub_that_does_not_answer_keeps_nobody_from_ending(launch_worker, queue_redis, environ, eventually):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub = f"http://127.0.0.1:{silent.getsockname()[1]}"
        url = queue_redis.url.removesuffix("/0") + "/7"
        worker = launch_worker({"ours": generators()["ours"]}, url, environ={**environ, "HF_ENDPOINT": hub})
        with silent.accept()[0]:  # it was asked
            assert worker.end(within_s=10) == 0


class StrangeHub(BaseHTTPRequestHandler):
    """Answers everything with JSON that is none of the Hub's, as a proxy in between may."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


def test_what_answers_in_the_hubs_place_ends_no_worker(launch_worker, queue_redis, environ, standin, ask, eventually):
    url = queue_redis.url.removesuffix("/0") + "/8"
    own = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with ThreadingHTTPServer(("127.0.0.1", 0), StrangeHub) as strange:
        threading.Thread(target=strange.serve_forever).start()
        environ = {**environ, "HF_ENDPOINT": f"http://127.0.0.1:{strange.server_port}"}
        worker = launch_worker({"ours": generators()["ours"], "own": own}, url, environ=environ)
        try:
            with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client:
                eventually(lambda: "generator 'ours' is not checked: Model our/model: what answers" in worker.log)
                with pytest.raises(GenerationFailedError, match="our/model: what answers in the Hub's place"):
                    client.submit(ask(), generator="ours").result(timeout_s=30)
                prompt = ask()
                assert client.submit(prompt, generator="own").result(timeout_s=10).replies == [prompt.answer]
        finally:
            strange.shutdown()
            assert worker.end() == 0


CANARY = "canary-hubs-words-0011"
TALK = {
    "our/model": {"pipeline_tag": CANARY},
    "our/dated": {"createdAt": CANARY},
    "our/mapped": {"inferenceProviderMapping": CANARY},
    "our/chats": {
        "inferenceProviderMapping": {
            CANARY: {"status": "live", "providerId": "p", "task": "text-generation"},
            "together": {"status": "live", "providerId": "p", "task": CANARY},
        }
    },
}


class TalkingHub(StrangeHub):
    """The Hub's answers, with words of its own wherever huggingface_hub's errors repeat one."""

    def do_GET(self):
        name = self.path.partition("?")[0].removeprefix("/api/models/")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"id": name, **TALK.get(name, {})}).encode())


WORDS_OF_THE_HUB = {
    "ours": (
        "hf-inference",
        "our/model",
        "task 'text-generation'. Supported tasks: 'an unknown one', got",
    ),
    "together": ("together", "our/chats", "provider together. Supported task: an unknown one."),
    "anybodys": (None, "our/chats", "Provider 'an unknown one' not supported."),
    "dated": ("hf-inference", "our/dated", "what answers in the Hub's place is not the Hub: ValueError"),
    "mapped": ("together", "our/mapped", "what answers in the Hub's place is not the Hub: ValueError"),
}


def test_no_word_of_the_hubs_reaches_a_log_a_status_or_an_error(launch_worker, queue_redis, environ, ask, eventually):
    """But the names of tasks and providers that huggingface_hub knows too."""
    url = queue_redis.url.removesuffix("/0") + "/8"
    chosen = {
        name: {
            "api_type": "serverless_inference_api",
            "api_params": {"model": model, **({"provider": provider} if provider else {})},
            "max_attempts": 1,
        }
        for name, (provider, model, _) in WORDS_OF_THE_HUB.items()
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), TalkingHub) as hub:
        threading.Thread(target=hub.serve_forever).start()
        environ = {**environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
        worker = launch_worker(chosen, url, environ=environ)
        try:
            with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client:
                eventually(lambda: all(f"generator {name!r}" in worker.log for name in chosen))
                eventually(lambda: "an unknown one" in str(client.workers()))
                assert CANARY not in str(client.workers())
                for name, (_, _, words) in WORDS_OF_THE_HUB.items():
                    with pytest.raises(GenerationError, match=re.escape(words)) as failed:
                        client.submit(ask(), generator=name).result(timeout_s=30)
                    assert CANARY not in str(failed.value)
        finally:
            hub.shutdown()
            assert worker.end() == 0
    assert CANARY not in worker.log
    assert "an unknown one" in worker.log


def test_a_hub_that_cannot_be_reached_keeps_nobody_from_starting(
    launch_worker, queue_redis, environ, closed_port, ask, eventually
):
    url = queue_redis.url.removesuffix("/0") + "/6"
    chosen = {name: generators()[name] for name in ("ours", "anybodys")}
    worker = launch_worker(chosen, url, environ={**environ, "HF_ENDPOINT": f"http://127.0.0.1:{closed_port}"})
    try:
        with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client:
            # Who serves a chat is the router's to choose: nobody is asked before.
            chat = client.submit_chat(user(prompt := ask()), generator="anybodys")
            assert chat.result(timeout_s=30).replies == [chat_answer(prompt)]
            with pytest.raises(GenerationFailedError, match="our/model: the Hub cannot be asked"):
                client.submit(ask(), generator="ours").result(timeout_s=30)
        eventually(lambda: worker.log.count("is not checked: ") == 2)
    finally:
        worker.end()
