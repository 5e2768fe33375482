"""A serverless model id, as far as it can be followed without Hugging Face's own servers.

The router's address is a constant of huggingface_hub (``INFERENCE_PROXY_TEMPLATE``), no variable sets it.
But an HTTPS proxy is asked for it by name, and the Hub, which says what the model can do, is
where ``HF_ENDPOINT`` points.
"""

import http.server
import json
import threading

import pytest

from genqueue import GenerationClient, GenerationFailedError, GenerationRejectedError, Settings

SECRET = "hf_canaryServerless0005"


class Recorder(http.server.BaseHTTPRequestHandler):
    """The Hub and the proxy in one: answers model questions, refuses tunnels, remembers both."""

    def do_GET(self):
        self.server.seen.append(("GET", self.path))
        model = self.path.removeprefix("/api/models/").partition("?")[0]
        tag = "text-generation" if model.startswith("our/") else "image-classification"
        body = json.dumps({"id": model, "modelId": model, "pipeline_tag": tag, "tags": [tag]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self):
        self.server.seen.append(("CONNECT", self.path, self.headers.get("authorization")))
        self.send_error(502, "no way through")

    def log_message(self, *_):
        pass


@pytest.fixture
def recorder():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_model_id_is_looked_up_at_the_hub_and_called_at_the_router(start_worker, queue_redis, ask, recorder):
    url, address = queue_redis.url.removesuffix("/0") + "/5", f"http://127.0.0.1:{recorder.server_port}"
    serverless = {"api_type": "serverless_inference_api"}
    worker = start_worker(
        {
            "ours": {**serverless, "api_params": {"model": "our/model", "provider": "hf-inference"}},
            "pictures": {**serverless, "api_params": {"model": "their/pictures", "provider": "hf-inference"}},
            "anybodys": {**serverless, "api_params": {"model": "our/model"}, "max_attempts": 1},
            "somebodys": {**serverless, "api_params": {"model": "our/model", "provider": "together"}},
            "nobodys": {**serverless, "api_params": {"model": "our/model", "provider": "no-such"}},
        },
        url,
        "-c",
        "2",
        environ={"HF_ENDPOINT": address, "HTTPS_PROXY": address, "NO_PROXY": "", "no_proxy": "", "HF_TOKEN": SECRET},
    )
    with GenerationClient(Settings(redis_url=url, generators={})) as client:
        with pytest.raises(GenerationFailedError, match="the way to the server failed"):
            client.submit(ask(), generator="ours").result(timeout_s=20)
        with pytest.raises(GenerationRejectedError, match="doesn't support task 'text-generation'"):
            client.submit(ask(), generator="pictures").result(timeout_s=20)
        assert ("CONNECT", "router.huggingface.co:443", None) in recorder.seen
        asked = len(recorder.seen)
        for generator, error, words in (
            # Who serves a chat is the router's to choose: nobody is asked before.
            ("anybodys", GenerationFailedError, "the way to the server failed"),
            ("somebodys", GenerationRejectedError, "No provider mapping found for model our/model"),
            ("nobodys", GenerationRejectedError, "Provider 'no-such' not supported"),
            ("pictures", GenerationRejectedError, "doesn't support task 'conversational'"),
        ):
            with pytest.raises(error, match=words):
                client.submit_chat([{"role": "user", "content": ask()}], generator=generator).result(timeout_s=20)
        assert ("CONNECT", "router.huggingface.co:443", None) in recorder.seen[asked:]
    assert {seen[1].partition("?")[0] for seen in recorder.seen if seen[0] == "GET"} == {
        "/api/models/our/model",
        "/api/models/their/pictures",
    }
    assert SECRET not in worker.log
