"""Faults on demand, as a client meets them."""

import asyncio
import json
from contextlib import asynccontextmanager

import aiohttp
import pytest

from genqueue_ops.standin.prose import expected_text, variant
from genqueue_ops.standin.script import Fault, Script
from genqueue_ops.standin.server import serve


@asynccontextmanager
async def faulty(*faults, **script):
    async with (
        serve(Script(tokens=8, itl_s=0.002, faults=faults, **script)) as served,
        aiohttp.ClientSession(served.url) as http,
    ):
        http.served = served
        yield http


def texts(raw):
    """Token texts of the whole events in a stream that may break off."""
    whole = raw[: raw.rfind(b"\n\n") + 2].split(b"\n\n")[:-1]
    return "".join(json.loads(line[6:])["token"]["text"] for line in whole)


async def post(http, inputs="Hi", path="/generate_stream"):
    """(status, body as far as it came, exception or None)."""
    raw, status = b"", None
    try:
        async with http.post(path, json={"inputs": inputs, "parameters": {}}) as response:
            status = response.status
            async for piece in response.content.iter_any():
                raw += piece
    except aiohttp.ClientError as error:
        return status, raw, error
    return status, raw, None


async def test_refuse_resets_before_any_header():
    async with faulty(Fault(kind="refuse", times=1)) as http:
        status, _, error = await post(http)
        assert status is None
        assert isinstance(error, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError)
        assert http.served.requests()[0]["fault"] == "refuse"
        assert (await post(http))[0] == 200


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_status_brings_its_body_and_headers(path):
    fault = Fault(kind="status", status=503, body={"error": "waking"}, headers={"retry-after": "2"}, times=1)
    async with faulty(fault) as http:
        async with http.post(path, json={"inputs": "Hi"}) as response:
            assert (response.status, response.headers["retry-after"]) == (503, "2")
            assert await response.json() == {"error": "waking"}
        assert (await post(http))[0] == 200


@pytest.mark.parametrize("kind", ["status", "error"])
async def test_an_error_may_quote_what_was_asked_and_with_which_headers(kind):
    async with faulty(Fault(kind=kind, body="broken", error="broken", quotes=True)) as http:
        _, raw, _ = await post(http)
        assert b"broken for {" in raw
        assert b"Hi" in raw
        assert http.served.url.removeprefix("http://").encode() in raw


async def test_slow_headers_come_late():
    async with faulty(Fault(kind="slow_headers", delay_s=0.2)) as http:
        began_s = asyncio.get_running_loop().time()
        async with http.post("/generate_stream", json={"inputs": "Hi"}) as response:
            assert asyncio.get_running_loop().time() - began_s >= 0.2
            assert response.status == 200


async def test_an_error_event_ends_the_stream():
    fault = Fault(kind="error", after_tokens=3, error="Incomplete generation", error_type="incomplete_generation")
    async with faulty(fault) as http:
        status, raw, error = await post(http)
    assert (status, error) == (200, None)
    *_, last = raw.split(b"\n\n")[:-1]
    assert json.loads(last[6:]) == {"error": "Incomplete generation", "error_type": "incomplete_generation"}
    assert raw.count(b"data: ") == 4


async def test_an_error_of_a_whole_answer_is_its_status():
    async with faulty(Fault(kind="error", after_tokens=3)) as http:
        status, raw, _ = await post(http, path="/generate")
    assert status == 424
    assert json.loads(raw)["error_type"] == "generation"


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_a_cut_stream_ends_cleanly_without_its_end_marker(count):
    async with faulty(Fault(kind="cut", after_tokens=count)) as http:
        status, raw, error = await post(http)
    assert (status, error) == (200, None)
    assert b'"generated_text":"' not in raw
    assert texts(raw) == expected_text("Hi", count)


@pytest.mark.parametrize(
    ("kind", "exception"), [("close", aiohttp.ClientPayloadError), ("reset", aiohttp.ClientOSError)]
)
async def test_a_broken_connection_delivers_what_was_sent(kind, exception):
    async with faulty(Fault(kind=kind, after_tokens=4)) as http:
        status, raw, error = await post(http)
        assert http.served.requests()[0]["state"] == "failed"
    assert status == 200
    assert isinstance(error, exception | aiohttp.ClientPayloadError)
    assert texts(raw) == expected_text("Hi", 4)


@pytest.mark.parametrize("kind", ["cut", "close", "reset"])
async def test_a_whole_answer_is_cut_by_its_connection(kind):
    async with faulty(Fault(kind=kind, after_tokens=4)) as http:
        status, _, error = await post(http, path="/generate")
    assert status is None
    assert isinstance(error, aiohttp.ClientConnectionError)


async def test_a_stall_ends_after_its_delay():
    async with faulty(Fault(kind="stall", after_tokens=2, delay_s=0.15)) as http:
        began_s = asyncio.get_running_loop().time()
        _, raw, error = await post(http)
    assert asyncio.get_running_loop().time() - began_s >= 0.15
    assert error is None
    assert raw.count(b"data: ") == 9


@pytest.mark.parametrize(("comments", "heard"), [(True, b":\n\n"), (False, b"")])
async def test_an_endless_stall_lasts_until_the_client_leaves(comments, heard):
    fault = Fault(kind="stall", after_tokens=1, comments=comments)
    async with serve(Script(faults=(fault,)), keep_alive_s=0.05) as served, aiohttp.ClientSession() as http:
        raw = b""
        with pytest.raises(TimeoutError):
            async with (
                asyncio.timeout(1.0),
                http.post(f"{served.url}/generate_stream", json={"inputs": "Hi"}) as response,
            ):
                async for piece in response.content.iter_any():
                    raw += piece
        async with asyncio.timeout(5):
            while served.requests()[0]["state"] != "dropped":
                await asyncio.sleep(0.005)
    assert raw.count(b"data: ") == 1
    assert raw.endswith(heard or b"null}\n\n")


async def test_garbage_takes_the_place_of_one_event():
    async with faulty(Fault(kind="garbage", after_tokens=2)) as http:
        status, raw, error = await post(http)
    assert (status, error) == (200, None)
    events = raw.split(b"\n\n")[:-1]
    broken = events.pop(2)
    assert len(events) == 8 and b"\xff" in broken
    with pytest.raises(ValueError):
        json.loads(broken[6:])
    assert json.loads(events[-1][6:])["generated_text"] == expected_text("Hi", 8)


async def test_half_an_event_is_the_last_of_its_stream():
    async with faulty(Fault(kind="half", after_tokens=2)) as http:
        status, raw, error = await post(http)
    assert (status, error) == (200, None)
    whole, _, half = raw.rpartition(b"\n\n")
    assert whole.count(b"data: ") == 2 and half.startswith(b"data: {") and not half.endswith(b"}")


async def test_what_drips_is_whole_in_the_end():
    async with faulty(Fault(kind="drip", after_tokens=2)) as http:
        status, raw, error = await post(http)
    assert (status, error) == (200, None)
    assert texts(raw) == expected_text("Hi", 8) + "</s>"


async def test_the_text_is_another_one_for_each_value_of_a_header():
    async with faulty(by_header="x-worker") as http:
        found = {}
        for name in ("one", "two"):
            async with http.post("/generate", json={"inputs": "Hi"}, headers={"x-worker": name}) as response:
                found[name] = (await response.json())["generated_text"]
        begun = "Hi" + "".join(expected_text(variant("Hi", "one"), 3))
        async with http.post("/generate", json={"inputs": begun}, headers={"x-worker": "two"}) as response:
            rest = (await response.json())["generated_text"]
    assert found == {name: expected_text(variant("Hi", name), 8) for name in ("one", "two")}
    assert found["one"] != found["two"]
    assert begun + rest == "Hi" + found["one"]


async def test_times_count_a_prompt_together_with_its_continuations():
    prompt = 'Hi {{standin {"faults": [{"kind": "cut", "after_tokens": 3, "times": 2}]}}}'
    async with faulty() as http:
        _, first, _ = await post(http, prompt)
        _, second, _ = await post(http, prompt + texts(first))
        _, third, _ = await post(http, prompt + texts(first) + texts(second))
        _, other, _ = await post(http, prompt.replace("Hi", "Ho"))
    assert [raw.count(b"data: ") for raw in (first, second, third, other)] == [3, 3, 3, 3]
    assert b'"generated_text":"' in third
    assert texts(first) + texts(second) + texts(third) == expected_text(prompt, 8) + "</s>"


async def test_setting_faults_anew_counts_anew():
    faults = [{"kind": "status", "status": 429, "times": 1, "scope": "server"}]
    async with faulty() as http:
        for _ in range(2):
            async with http.put("/standin/script", json={"faults": faults}) as response:
                assert response.status == 200
            assert [(await post(http, prompt))[0] for prompt in ("a", "b")] == [429, 200]


async def test_a_fault_of_all_requests_that_is_not_counted_leaves_prompts_their_counts():
    prompt = 'Hi {{standin {"faults": [{"kind": "status", "status": 503, "times": 1}]}}}'
    evils = [{"kind": "status", "status": 429, "scope": "server"}]
    async with serve(Script(tokens=2)) as served, aiohttp.ClientSession(served.url) as http:
        statuses = []
        for faults in (None, evils, []):
            if faults is not None:
                async with http.put("/standin/script", json={"faults": faults}) as response:
                    assert response.status == 200
            async with http.post("/", json={"inputs": prompt}) as response:
                statuses.append(response.status)
    assert statuses == [503, 200, 200]
