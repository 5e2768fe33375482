"""The stand-in's routes over TCP, byte for byte where TGI's clients depend on it."""

import asyncio
import io
import json
import socket
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import aiohttp
import pytest

from genqueue_ops.standin.chat import render
from genqueue_ops.standin.prose import expected_text, pieces
from genqueue_ops.standin.protocol import Limits
from genqueue_ops.standin.script import Script
from genqueue_ops.standin.server import serve

from ...support.waiting import wait_beside

ENDLESS = Script(itl_s=0.005)


@asynccontextmanager
async def standin(script=None, **options):
    async with serve(script, **options) as served, aiohttp.ClientSession(served.url) as http:
        http.served = served
        yield http


def events(raw):
    """JSON values of an SSE body; anything that is no `data: …` event fails."""
    assert raw.endswith(b"\n\n")
    lines = raw[:-2].split(b"\n\n")
    assert all(line.startswith(b"data: ") for line in lines)
    return [line[6:] if line == b"data: [DONE]" else json.loads(line[6:]) for line in lines]


async def test_native_stream_ends_without_done():
    async with (
        standin(Script(tokens=3)) as http,
        http.post("/generate_stream", json={"inputs": "Hi", "parameters": {"details": True}}) as response,
    ):
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["x-compute-characters"] == "2"
        assert "x-total-time" not in response.headers
        *words, last = events(await response.read())
    assert [event["index"] for event in words] == [1, 2, 3]
    assert "".join(event["token"]["text"] for event in words) == last["generated_text"] == expected_text("Hi", 3)
    assert (last["token"]["text"], last["token"]["special"]) == ("</s>", True)
    assert last["details"] == {"finish_reason": "eos_token", "generated_tokens": 4, "seed": None, "input_length": 1}


async def test_each_event_is_one_chunk():
    async with (
        standin(Script(tokens=5)) as http,
        http.post("/generate_stream", json={"inputs": "Hi", "parameters": {}}) as response,
    ):
        data, at_chunk_end = b"", []
        async for piece, ends in response.content.iter_chunks():
            data += piece
            if ends:
                at_chunk_end.append(data.count(b"\n\n"))
    assert at_chunk_end == [1, 2, 3, 4, 5, 6]


async def test_continuation_gives_the_same_text():
    async with standin(Script(tokens=40)) as http:

        async def text(inputs, count):
            body = {"inputs": inputs, "parameters": {"max_new_tokens": count}}
            async with http.post("/generate", json=body) as response:
                return (await response.json())["generated_text"]

        prompt = "Tell me\n"
        whole = await text(prompt, 100)
        for count in (1, 2, 3, 4, 5, 17, 39, 40):
            begun = await text(prompt, count)
            assert begun + await text(prompt + begun, 100) == whole


async def test_whole_answer_has_timing_headers():
    async with standin(Script(ttft_s=0.02, itl_s=0.01)) as http:
        body = {"inputs": "one two", "parameters": {"max_new_tokens": 3, "details": True, "return_full_text": True}}
        async with http.post("/generate", json=body) as response:
            answer, headers = await response.json(), response.headers
    assert answer["generated_text"] == "one two" + expected_text("one two", 3)
    assert answer["details"]["finish_reason"] == "length"
    assert answer["details"]["prefill"] == []
    assert (headers["x-prompt-tokens"], headers["x-generated-tokens"]) == ("2", "3")
    assert 39 <= int(headers["x-inference-time"]) <= int(headers["x-total-time"])
    assert float(headers["x-compute-time"]) >= 0.039


async def test_the_root_route_streams_or_lists_one():
    async with standin(Script(tokens=2)) as http:
        async with http.post("/", json={"inputs": "Hi", "parameters": {}}) as response:
            (only,) = await response.json()
        async with http.post("/", json={"inputs": "Hi", "parameters": {}, "stream": True}) as response:
            streamed = events(await response.read())
    assert only == {"generated_text": "Hi" + expected_text("Hi", 2)}
    assert streamed[-1]["generated_text"] == only["generated_text"]


async def test_prefill_is_shown_where_the_server_allows_it():
    body = {"inputs": "one two", "parameters": {"decoder_input_details": True, "max_new_tokens": 1}}
    async with (
        standin(limits=Limits(prefill_logprobs=True)) as http,
        http.post("/generate", json=body) as response,
    ):
        prefill = (await response.json())["details"]["prefill"]
    assert [token["text"] for token in prefill] == ["one", " two"]
    assert prefill[0]["logprob"] is None


async def test_best_of_reports_the_others():
    body = {"inputs": "Hi", "parameters": {"best_of": 2, "do_sample": True, "details": True, "max_new_tokens": 4}}
    async with standin() as http, http.post("/generate", json=body) as response:
        best = await response.json()
    (other,) = best["details"]["best_of_sequences"]
    texts = {best["generated_text"], other["generated_text"]}
    assert len(texts) == 2
    assert expected_text("Hi", 4) in texts
    assert other["generated_tokens"] == 4


async def test_chat_stream_ends_with_usage_and_done():
    messages = [{"role": "user", "content": "Hi"}]
    body = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}, "model": "tgi"}
    async with standin(Script(tokens=2)) as http, http.post("/v1/chat/completions", json=body) as response:
        *deltas, usage, done = events(await response.read())
    assert "".join(event["choices"][0]["delta"]["content"] for event in deltas) == expected_text(render(messages), 2)
    assert [event["choices"][0]["finish_reason"] for event in deltas] == [None, None, "stop"]
    prompt_tokens = len(pieces(render(messages)))
    assert usage["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 3,
        "total_tokens": prompt_tokens + 3,
    }
    assert done == b"[DONE]"


async def test_chat_continues_an_unfinished_assistant_message():
    messages = [{"role": "user", "content": "Hi"}]
    whole = expected_text(render(messages), 10)
    begun = whole[:30]
    body = {"messages": [*messages, {"role": "assistant", "content": begun}], "max_tokens": 20}
    async with standin(Script(tokens=10)) as http, http.post("/v1/chat/completions", json=body) as response:
        content = (await response.json())["choices"][0]["message"]["content"]
    assert begun.rstrip() + content == whole


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/generate_stream", {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0"}),
        ("/v1/chat/completions", {"message": "Input validation error: `top_p` must be > 0.0 and < 1.0"}),
    ],
)
async def test_a_stream_is_200_and_carries_its_error(path, last):
    body = {"inputs": "Hi", "parameters": {"top_p": 1.0}, "messages": [{"role": "user", "content": "Hi"}]}
    body |= {"top_p": 1.0, "stream": True}
    async with standin() as http, http.post(path, json=body) as response:
        assert response.status == 200
        event, *rest = events(await response.read())
    if path == "/generate_stream":
        assert event == {**last, "error_type": "validation"}
        assert rest == []
    else:
        assert event == {"error": {**last, "http_status_code": 422}}
        assert rest == [b"[DONE]"]


async def test_a_whole_answer_carries_its_error_as_status():
    async with (
        standin() as http,
        http.post("/generate", json={"inputs": "", "parameters": {}}) as response,
    ):
        assert response.status == 422
        assert await response.json() == {
            "error": "Input validation error: `inputs` cannot be empty",
            "error_type": "validation",
        }


async def test_an_overloaded_server_answers_so_even_to_invalid_requests():
    async with standin(ENDLESS, limits=Limits(max_concurrent_requests=1)) as http:
        async with http.post("/generate_stream", json={"inputs": "Hi"}) as running:
            await running.content.readline()
            async with http.post("/generate", json={"inputs": "", "parameters": {}}) as response:
                assert response.status == 429
                assert "retry-after" not in response.headers
                assert await response.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
            async with http.post("/generate_stream", json={"inputs": "Hi"}) as response:
                assert response.status == 200
                assert events(await response.read()) == [{"error": "Model is overloaded", "error_type": "overloaded"}]
        await wait_beside(lambda: http.served.requests()[0]["state"] == "dropped")
        async with http.post("/generate", json={"inputs": "Hi", "parameters": {"max_new_tokens": 1}}) as response:
            assert response.status == 200


async def test_the_batch_is_full_and_the_next_one_waits():
    async with standin(ENDLESS, max_batch=1) as http:
        async with http.post("/generate_stream", json={"inputs": "first"}) as first:
            await first.content.readline()
            second = asyncio.create_task(
                http.post("/generate", json={"inputs": "second", "parameters": {"max_new_tokens": 1}}).__aenter__()
            )
            await wait_beside(lambda: len(http.served.requests()) == 2)
            async with http.get("/metrics") as response:
                lines = (await response.text()).splitlines()
            assert "tgi_queue_size 1" in lines
            assert "tgi_batch_current_size 1" in lines
            assert not second.done()
        (await second).release()
    assert [entry["state"] for entry in http.served.requests()] == ["dropped", "completed"]


async def test_a_client_that_leaves_stops_its_generation():
    async with standin(Script(itl_s=0.1)) as http:
        async with http.post("/generate_stream", json={"inputs": "Hi"}) as response:
            for _ in range(6):
                await response.content.readline()
        await wait_beside(lambda: http.served.requests()[0]["state"] == "dropped")
        (entry,) = http.served.requests()
        assert 3 <= entry["tokens_sent"] <= 6
        assert entry["closed_at_s"] >= entry["first_token_at_s"] >= entry["started_at_s"]
        async with http.get("/metrics") as response:
            text = await response.text()
        assert 'tgi_request_failure{err="dropped"} 1' in text
        assert "tgi_batch_current_size 0" in text


@pytest.mark.parametrize("turns", range(5))
async def test_who_connects_as_it_ends_is_not_left_waiting(turns):
    """However many turns of the loop ago."""
    async with serve() as served:
        place = urlsplit(served.url)
        late = socket.create_connection((place.hostname, place.port))
        for _ in range(turns):
            await asyncio.sleep(0)
    with late, suppress(ConnectionResetError):
        late.settimeout(5)
        assert await asyncio.to_thread(late.recv, 1) == b""


async def test_silence_is_broken_by_comments():
    async with (
        standin(Script(ttft_s=0.95), keep_alive_s=0.1) as http,
        http.post("/generate_stream", json={"inputs": "Hi", "parameters": {"max_new_tokens": 1}}) as response,
    ):
        raw = await response.read()
    comments, _, _ = raw.partition(b"data: ")
    count = comments.count(b":")
    assert comments == b":\n\n" * count
    assert 3 <= count <= 9


@pytest.mark.parametrize(
    ("request_options", "status", "text"),
    [
        ({"data": b"{}", "headers": {"content-type": "text/plain"}}, 415, "Expected request with `Content-Type:"),
        ({"data": b"{", "headers": {"content-type": "application/json"}}, 400, "Failed to parse the request body"),
        ({"json": {}}, 422, "Failed to deserialize the JSON body into the target type: missing field `inputs`"),
        (
            {"data": io.BytesIO(b" " * 2_000_001), "headers": {"content-type": "application/json"}},
            413,
            "Failed to buffer the request body: length limit exceeded",
        ),
        ({"json": {"inputs": "{{standin {}"}}, 400, "directive"),
    ],
    ids=["media-type", "syntax", "field", "size", "directive"],
)
async def test_rejections_are_plain_text(request_options, status, text):
    async with standin() as http, http.post("/generate_stream", **request_options) as response:
        assert response.status == status
        assert response.content_type == "text/plain"
        assert (await response.text()).startswith(text)


async def test_unknown_paths_and_methods_have_no_body():
    async with standin() as http:
        async with http.get("/nowhere") as response:
            assert (response.status, await response.read()) == (404, b"")
        async with http.get("/generate") as response:
            assert (response.status, await response.read()) == (405, b"")


async def test_a_key_is_asked_for_where_tgi_asks():
    async with standin(Script(tokens=1), api_key="secret") as http:
        for headers, status in (
            ({}, 401),
            ({"authorization": "Bearer wrong"}, 401),
            ({"authorization": "bearer SECRET"}, 200),
        ):
            async with http.post("/generate", json={"inputs": "Hi"}, headers=headers) as response:
                assert response.status == status
                if status == 401:
                    assert await response.read() == b""
        for path in ("/", "/health", "/info", "/metrics", "/v1/models"):
            async with http.get(path) as response:
                assert response.status == 200


async def test_info_and_models_name_the_model():
    async with standin(limits=Limits(max_concurrent_requests=7)) as http:
        async with http.get("/info") as response:
            info = await response.json()
        async with http.get("/v1/models") as response:
            models = await response.json()
        async with http.get("/health") as response:
            assert await response.read() == b""
    assert list(info)[:4] == ["model_id", "model_sha", "model_pipeline_tag", "max_concurrent_requests"]
    assert (info["max_concurrent_requests"], info["router"]) == (7, "text-generation-router")
    assert models["data"][0]["id"] == info["model_id"]


async def test_metrics_count_what_happened():
    async with standin(Script(tokens=3)) as http:
        for inputs in ("Hi", "Hi", ""):
            async with http.post("/generate", json={"inputs": inputs, "parameters": {}}):
                pass
        async with http.get("/metrics") as response:
            lines = (await response.text()).splitlines()
    for line in (
        "tgi_request_count 3",
        "tgi_request_success 2",
        'tgi_request_failure{err="validation"} 1',
        "tgi_request_generated_tokens_count 2",
        "tgi_request_generated_tokens_sum 8.0",
        'tgi_request_duration_bucket{le="+Inf"} 2',
        "tgi_queue_size 0",
    ):
        assert line in lines


async def test_many_streams_hold_the_pace():
    async with standin(Script(itl_s=0.02), limits=Limits(max_concurrent_requests=200)) as http:

        async def one(number):
            body = {"inputs": f"Prompt {number}", "parameters": {"max_new_tokens": 26}}
            async with http.post("/generate_stream", json=body) as response:
                last = events(await response.read())[-1]
            return last["generated_text"] == expected_text(f"Prompt {number}", 26)

        assert all(await asyncio.gather(*(one(number) for number in range(60))))
        took_s = [entry["closed_at_s"] - entry["started_at_s"] for entry in http.served.requests()]
    # 25 gaps of 20 ms, from absolute deadlines: a busy machine's lateness does not add up.
    assert all(0.49 < duration_s < 10 for duration_s in took_s)


async def test_the_journal_keeps_what_came_and_forgets_on_demand():
    async with standin(Script(tokens=1)) as http:
        body = {"inputs": "Hi", "parameters": {"seed": 5}}
        async with http.post("/generate", json=body, headers={"Authorization": "Bearer hf_x"}):
            pass
        async with http.get("/standin/requests") as response:
            (entry,) = await response.json()
        assert entry["body"] == body
        assert entry["headers"]["authorization"] == "Bearer hf_x"
        assert (entry["path"], entry["state"], entry["tokens_sent"]) == ("/generate", "completed", 2)
        async with http.delete("/standin/requests") as response:
            assert response.status == 204
        async with http.get("/standin/requests") as response:
            assert await response.json() == []


async def test_the_script_changes_at_run_time():
    async with standin() as http:
        async with http.put("/standin/script", json={"tokens": 2, "special": False}) as response:
            assert (await response.json())["tokens"] == 2
        async with http.post("/generate_stream", json={"inputs": "Hi", "parameters": {}}) as response:
            last = events(await response.read())[-1]
        assert last["index"] == 2
        assert last["generated_text"] == expected_text("Hi", 2)
        for wrong in ({"token": 2}, {"itl_s": -1}, [1]):
            async with http.put("/standin/script", json=wrong) as response:
                assert response.status == 400
        async with http.get("/standin/script") as response:
            assert (await response.json())["tokens"] == 2


async def test_a_directive_is_for_its_request_alone():
    prompt = 'Hi {{standin {"tokens": 1}}}'
    async with standin(Script(tokens=4)) as http:
        for inputs, tokens in ((prompt, 2), ("Hi", 5)):
            async with http.post("/generate", json={"inputs": inputs, "parameters": {"details": True}}) as response:
                assert (await response.json())["details"]["generated_tokens"] == tokens


async def test_an_unhealthy_server_says_so():
    async with standin(Script(healthy=False)) as http:
        for path in ("/", "/health", "/ping"):
            async with http.get(path) as response:
                assert response.status == 503
                assert await response.json() == {"error": "unhealthy", "error_type": "healthcheck"}


async def test_a_server_scaled_to_zero_wakes_up_by_a_request_and_holds_those_that_want_it():
    async with standin(Script(tokens=1, asleep_s=2.0)) as http:

        async def status(path="/health", **headers):
            async with http.get(path, headers=headers) as response:
                return response.status

        assert (await status(), await status()) == (503, 503)
        async with http.post("/generate", json={"inputs": "Hi"}) as response:
            assert response.status == 503
        assert await status(**{"X-Scale-Up-Timeout": "0.01"}) == 503
        assert await status(**{"X-Scale-Up-Timeout": "600"}) == 200
        async with http.post("/generate", json={"inputs": "Hi"}) as response:
            assert response.status == 200
