"""A Hub and a router of this machine that answer as Hugging Face's do.

The router's address is a constant of huggingface_hub (``INFERENCE_PROXY_TEMPLATE``), no variable sets
it.  But an HTTPS proxy is asked for it by name; ours leads to a TLS server whose certificate says
``router.huggingface.co`` and is signed by an authority that the worker is told to trust.  The models' text
is the stand-in's.  The words of refusals are those that users of the real ones report.
"""

import asyncio
import contextlib
import json
import ssl
import threading

import aiohttp
import trustme
from aiohttp import web

from genqueue_ops.standin.server import cleanup, stop_accepting

TOKEN = "hf_canaryServerless0005"


def served_by(**providers):
    return {
        name: {"status": "live", "providerId": f"{name}/its-own-name", "task": task} for name, task in providers.items()
    }


MODELS = {
    "our/model": {"pipeline_tag": "text-generation", "providers": served_by(together="conversational")},
    "our/chats": {"pipeline_tag": "text-generation", "providers": served_by(together="conversational")},
    "our/texts": {"pipeline_tag": "text-generation", "providers": served_by(together="text-generation")},
    "HuggingFaceH4/zephyr-7b-beta": {
        "pipeline_tag": "text-generation",
        "providers": served_by(together="text-generation"),
    },
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

    def __init__(self, standin_url):
        self.seen = []
        self.bodies = []
        self.lets_go = threading.Event()
        self._standin_url = standin_url
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority = trustme.CA()
        self._authority.issue_cert("router.huggingface.co").configure_cert(self._context)

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
                opened.push_async_callback(cleanup, runner)
                site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
                await site.start()
                ports.append(site._server.sockets[0].getsockname()[1])
            self._router_port = ports[1]
            proxy = await asyncio.start_server(self._tunnel, "127.0.0.1", 0)
            opened.callback(proxy.close)
            opened.push_async_callback(stop_accepting, proxy)
            self._session = await opened.enter_async_context(aiohttp.ClientSession())
            self.hub_url = f"http://127.0.0.1:{ports[0]}"
            self.proxy_url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
            yield self

    def environ(self, bundle):
        """What leads a worker here; its certificates are written to ``bundle``."""
        self._authority.cert_pem.write_to_path(bundle)
        return {
            "HF_ENDPOINT": self.hub_url,
            "HTTPS_PROXY": self.proxy_url,
            "SSL_CERT_FILE": str(bundle),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "HF_API_TOKEN": TOKEN,
        }

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
    """TGI's stream event as an OpenAI-compatible server would put it; an error may be a ``finish_reason`` only."""
    if event.get("error_type") == "finish_reason":
        given_up = {"index": 0, "text": "", "logprobs": None, "finish_reason": event["error"]}
        return [{"object": "text_completion", "choices": [given_up]}]
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


@contextlib.contextmanager
def hugging_face_beside(standin_url):
    """A :class:`HuggingFace` that runs."""
    ready, stop = threading.Event(), threading.Event()
    place = HuggingFace(standin_url)

    async def serve():
        async with place.running():
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield place
    finally:
        place.lets_go.set()
        stop.set()
        thread.join()
