"""Serverless models, against a Hub and a router of this machine that answer as Hugging Face's do.

The router's address is a constant of huggingface_hub (``INFERENCE_PROXY_TEMPLATE``), no variable sets
it.  But an HTTPS proxy is asked for it by name; ours leads to a TLS server whose certificate says
``router.huggingface.co`` and is signed by an authority that the worker is told to trust.  The models' text
is the stand-in's.  The words of refusals are those that users of the real ones report.
"""

import asyncio
import contextlib
import json
import re
import socket
import ssl
import threading

import aiohttp
import pytest
import trustme
from aiohttp import web

from genqueue import GenerationClient, GenerationFailedError, GenerationRejectedError, Settings
from genqueue_ops.tgi_standin.chat import render
from genqueue_ops.tgi_standin.prose import expected_text

TOKEN, OTHER_TOKEN = "hf_canaryServerless0005", "hf_canaryServerless0006"
ROUTER = "router.huggingface.co:443"


def served_by(**providers):
    return {
        name: {"status": "live", "providerId": f"{name}/its-own-name", "task": task} for name, task in providers.items()
    }


MODELS = {
    "our/model": {"pipeline_tag": "text-generation", "providers": served_by(together="conversational")},
    "our/chats": {"pipeline_tag": "text-generation", "providers": served_by(together="conversational")},
    "our/texts": {"pipeline_tag": "text-generation", "providers": served_by(together="text-generation")},
    "our/pictures": {"pipeline_tag": "image-classification", "providers": {}},
    "our/gated": {"pipeline_tag": "text-generation", "providers": {}, "is_gated": True},
    "our/slow": {"pipeline_tag": "text-generation", "providers": {}},
    "our/poor": {"pipeline_tag": "text-generation", "providers": {}},
}


class HuggingFace:
    """The Hub, the router and the proxy that leads to it, on a loop of its own.

    Attributes:
        url: the Hub's address, and the proxy's.
        seen: (method, path) of what came, oldest first, and for the router's the headers.
        bodies: what was asked of the provider's route for texts.
        lets_go: set when the Hub may answer for ``our/slow``.
    """

    def __init__(self, standin_url, authority):
        self.seen = []
        self.bodies = []
        self.lets_go = threading.Event()
        self._standin_url = standin_url
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("router.huggingface.co").configure_cert(self._context)

    @contextlib.asynccontextmanager
    async def running(self):
        hub, router = web.Application(), web.Application()
        hub.router.add_get("/api/models/{owner}/{name}", self._model)
        hub.router.add_get("/api/models/{owner}/{name}/auth-check", self._access)
        router.router.add_post("/hf-inference/models/{owner}/{name}", self._generate)
        router.router.add_post("/v1/chat/completions", self._chat)
        router.router.add_post("/together/v1/chat/completions", self._chat)
        router.router.add_post("/together/v1/completions", self._complete)
        ports = []
        async with contextlib.AsyncExitStack() as opened:
            for app, context in ((hub, None), (router, self._context)):
                runner = web.AppRunner(app)
                await runner.setup()
                opened.push_async_callback(runner.cleanup)
                site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
                await site.start()
                ports.append(site._server.sockets[0].getsockname()[1])
            self._router_port = ports[1]
            proxy = await asyncio.start_server(self._tunnel, "127.0.0.1", 0)
            opened.callback(proxy.close)
            self._session = await opened.enter_async_context(aiohttp.ClientSession())
            self.hub_url = f"http://127.0.0.1:{ports[0]}"
            self.proxy_url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
            yield self

    # --- the Hub

    async def _model(self, request):
        model = "{owner}/{name}".format(**request.match_info)
        self.seen.append(("GET", request.path))
        if model == "our/slow":
            await asyncio.to_thread(self.lets_go.wait)
        if model not in MODELS:
            return self._no_such_repository()
        about = MODELS[model]
        body = {"id": model, "modelId": model, "pipeline_tag": about["pipeline_tag"], "tags": [about["pipeline_tag"]]}
        if request.query.get("expand") == "inferenceProviderMapping":
            body = {"id": model, "inferenceProviderMapping": about["providers"]}
        return web.json_response(body)

    async def _access(self, request):
        model = "{owner}/{name}".format(**request.match_info)
        self.seen.append(("GET", request.path))
        if model not in MODELS:
            return self._no_such_repository()
        if MODELS[model].get("is_gated"):
            words = f"Access to model {model} is restricted and you are not in the authorized list."
            return web.json_response(
                {"error": words}, status=403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": words}
            )
        return web.Response()

    def _no_such_repository(self):
        words = "Repository not found"
        return web.json_response(
            {"error": words}, status=404, headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": words}
        )

    # --- the router

    async def _generate(self, request):
        model = "{owner}/{name}".format(**request.match_info)
        if refusal := self._refused(request, model):
            return refusal
        return await self._pass_on(request, "/", await request.json())

    async def _chat(self, request):
        body = await request.json()
        if refusal := self._refused(request, body["model"]):
            return refusal
        known = {"our/model", "our/chats"} if request.path.startswith("/v1") else {"together/its-own-name"}
        if body["model"] not in known:
            words = f"The requested model '{body['model']}' is not supported by any provider you have enabled."
            return web.json_response(
                {
                    "error": {
                        "message": words,
                        "type": "invalid_request_error",
                        "param": "model",
                        "code": "model_not_supported",
                    }
                },
                status=400,
            )
        return await self._pass_on(request, "/v1/chat/completions", body)

    async def _complete(self, request):
        """What the stand-in says to the prompt, in OpenAI's dialect."""
        body = await request.json()
        if refusal := self._refused(request, body["model"]):
            return refusal
        self.bodies.append(body)
        parameters = {"max_new_tokens": body["max_tokens"], "stop": body.get("stop", []), "details": True}
        asked = {"inputs": body["prompt"], "parameters": parameters}
        async with self._session.post(self._standin_url + "/generate_stream", json=asked) as answer:
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            async for line in answer.content:
                for event in completion_events(json.loads(line[5:])) if line.startswith(b"data:") else ():
                    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await response.write(b"data: [DONE]\n\n")
            return response

    def _refused(self, request, model):
        self.seen.append((request.method, request.path, request.headers.copy()))
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": "Invalid username or password."}, status=401)
        if model == "our/poor":
            return web.json_response(
                {"error": "You have exceeded your monthly included credits for Inference Providers."}, status=402
            )
        return None

    async def _pass_on(self, request, path, body):
        async with self._session.post(self._standin_url + path, json=body) as answer:
            response = web.StreamResponse(status=answer.status, headers={"content-type": answer.content_type})
            await response.prepare(request)
            async for part in answer.content.iter_any():
                await response.write(part)
            return response

    # --- the proxy

    async def _tunnel(self, reader, writer):
        asked = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, place, _ = asked.split("\r\n")[0].split()
        self.seen.append((method, place))
        assert TOKEN not in asked
        there, thither = await asyncio.open_connection("127.0.0.1", self._router_port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pour(reader, thither), _pour(there, writer))


def completion_events(event):
    """TGI's stream event as an OpenAI-compatible server would put it."""
    if "error" in event:
        return [{"error": {"message": event["error"], "type": event["error_type"], "code": 500}}]
    token, details = event["token"], event["details"]
    choice = {"index": 0, "text": "" if token["special"] else token["text"], "logprobs": None, "finish_reason": None}
    if details is None:
        return [{"object": "text_completion", "choices": [choice]}]
    reason = "length" if details["finish_reason"] == "length" else "stop"
    usage = {"prompt_tokens": details["input_length"], "completion_tokens": details["generated_tokens"]}
    return [
        {"object": "text_completion", "choices": [{**choice, "finish_reason": reason}], "usage": None},
        {"object": "text_completion", "choices": [], "usage": usage},
    ]


async def _pour(reader, writer):
    with contextlib.suppress(OSError):
        while part := await reader.read(65536):
            writer.write(part)
            await writer.drain()
    writer.close()


def user(prompt):
    return [{"role": "user", "content": prompt}]


def chat_answer(prompt):
    return expected_text(render(user(prompt)), 100_000, tokens=prompt.tokens)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def hugging_face(standin, authority):
    ready, stop = threading.Event(), threading.Event()
    place = HuggingFace(standin.url, authority)

    async def serve():
        async with place.running():
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield place
    place.lets_go.set()
    stop.set()
    thread.join()


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
        "nobodys": model("our/model", provider="no-such"),
        "elsewhere": model("our/model", provider="groq"),
        "poor": model("our/poor", provider="hf-inference"),
        "keyless": {**model("our/model", provider="hf-inference"), "token_env": ["WRONG_TOKEN"]},
    }


@pytest.fixture(scope="module")
def environ(hugging_face, authority, tmp_path_factory):
    bundle = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    return {
        "HF_ENDPOINT": hugging_face.hub_url,
        "HTTPS_PROXY": hugging_face.proxy_url,
        "SSL_CERT_FILE": str(bundle),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "HF_API_TOKEN": TOKEN,  # goes before HF_TOKEN
        "HF_TOKEN": OTHER_TOKEN,
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
    start, prompt = len(hugging_face.seen), ask(tokens=300, itl_s=0.005)
    kwargs = {"max_new_tokens": 8, "decoder_input_details": True}
    generation = client.submit(prompt, generator="texts", generation_kwargs=kwargs, stop_words=["never there"])
    chunks = [chunk.text for chunk in generation.stream() if chunk.text]
    assert "".join(chunks) == prompt.beginning(8) and len(chunks) > 1
    (meta,) = generation.result().meta
    assert (meta["model"], meta["finish_reason"], meta["usage"]["completion_tokens"]) == ("our/texts", "length", 8)
    assert meta["usage"]["prompt_tokens"] > 0
    assert [called for called, _ in calls_of(hugging_face, start)] == ["/together/v1/completions"]
    body = hugging_face.bodies[-1]
    assert (body["model"], body["stop"], body["max_tokens"]) == ("together/its-own-name", ["never there"], 8)
    assert body.keys().isdisjoint({"details", "return_full_text", "decoder_input_details"})


@pytest.mark.parametrize("kind", ["error", "cut"])
def test_a_prompt_of_a_provider_goes_on_where_it_broke_off(client, ask, kind):
    prompt = ask(tokens=9, faults=[{"kind": kind, "after_tokens": 5, "times": 1}])
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
    ("nobodys", "chat", "Provider 'no-such' not supported"),
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
        "nobodys": "error.*Provider 'no-such' not supported",
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
    (status,) = client.workers()
    assert "gated" in status.generators["gated"][0]["trouble"]
    assert status.generators["ours"][0]["trouble"] == ""


def test_a_hub_that_does_not_answer_keeps_nobody_from_ending(launch_worker, queue_redis, environ, eventually):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub = f"http://127.0.0.1:{silent.getsockname()[1]}"
        url = queue_redis.url.removesuffix("/0") + "/7"
        worker = launch_worker({"ours": generators()["ours"]}, url, environ={**environ, "HF_ENDPOINT": hub})
        with silent.accept()[0]:  # it was asked
            assert worker.end(within_s=10) == 0


def test_a_hub_that_cannot_be_reached_keeps_nobody_from_starting(
    launch_worker, queue_redis, environ, closed_port, ask, eventually
):
    url = queue_redis.url.removesuffix("/0") + "/6"
    chosen = {name: generators()[name] for name in ("ours", "anybodys")}
    worker = launch_worker(chosen, url, environ={**environ, "HF_ENDPOINT": f"http://127.0.0.1:{closed_port}"})
    try:
        with GenerationClient(Settings(redis_url=url, generators={})) as client:
            # Who serves a chat is the router's to choose: nobody is asked before.
            chat = client.submit_chat(user(prompt := ask()), generator="anybodys")
            assert chat.result(timeout_s=30).replies == [chat_answer(prompt)]
            with pytest.raises(GenerationFailedError, match="our/model: the Hub cannot be asked"):
                client.submit(ask(), generator="ours").result(timeout_s=30)
        eventually(lambda: worker.log.count("is not checked: ") == 2)
    finally:
        worker.end()
