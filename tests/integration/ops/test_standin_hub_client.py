"""huggingface_hub's clients take the stand-in for a TGI."""

import asyncio
from contextlib import asynccontextmanager

import httpx2
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import (
    GenerationError,
    HfHubHTTPError,
    IncompleteGenerationError,
    InferenceTimeoutError,
    OverloadedError,
    ValidationError,
)

from genqueue_ops.standin.chat import render
from genqueue_ops.standin.prose import expected_text, expected_tokens, pieces
from genqueue_ops.standin.protocol import Limits
from genqueue_ops.standin.script import Fault, Script
from genqueue_ops.standin.server import serve

PROMPT = "What's Natural Language Processing?"
MESSAGES = [{"role": "user", "content": PROMPT}]


@asynccontextmanager
async def client(script=None, *, timeout_s=5.0, **options):
    async with (
        serve(script, **options) as served,
        AsyncInferenceClient(model=served.url, timeout=timeout_s) as hub,
    ):
        yield hub, served


@pytest.mark.parametrize("route", ["", "/generate_stream"])
async def test_stream_with_details(route):
    async with client(Script(tokens=20)) as (hub, served):
        stream = await hub.text_generation(
            PROMPT, model=served.url + route, stream=True, details=True, return_full_text=False, max_new_tokens=64
        )
        outputs = [output async for output in stream]
    last = outputs[-1]
    assert [(o.token.text, o.token.id, o.token.logprob) for o in outputs[:-1]] == [
        (token.text, token.id, token.logprob) for token in expected_tokens(PROMPT, 20)
    ]
    assert last.token.special
    assert last.generated_text == expected_text(PROMPT, 20)
    assert (last.details.finish_reason, last.details.generated_tokens) == ("eos_token", 21)
    assert last.details.input_length == len(pieces(PROMPT))


async def test_stream_of_text_shows_the_end_token():
    async with client(Script(tokens=9)) as (hub, _):
        stream = await hub.text_generation(PROMPT, stream=True, return_full_text=False)
        # The client hands out every token's text, special or not: `details=True` tells them apart.
        assert "".join([text async for text in stream]) == expected_text(PROMPT, 9) + "</s>"


async def test_whole_text_and_details():
    async with client(Script()) as (hub, _):
        assert await hub.text_generation(PROMPT, max_new_tokens=5, return_full_text=False) == expected_text(PROMPT, 5)
        # The trap: `/` prefixes the prompt unless told not to.
        assert await hub.text_generation(PROMPT, max_new_tokens=5) == PROMPT + expected_text(PROMPT, 5)
        output = await hub.text_generation(
            PROMPT, max_new_tokens=5, details=True, best_of=2, do_sample=True, top_n_tokens=2, return_full_text=False
        )
    assert output.details.finish_reason == "length"
    assert len(output.details.best_of_sequences) == 1
    assert [len(step) for step in output.details.top_tokens] == [2] * 5


async def test_stop_strings_end_the_text_and_stay_in_it():
    tokens = expected_tokens(PROMPT, 50)
    stop = tokens[6].text
    async with client() as (hub, _):
        output = await hub.text_generation(PROMPT, stop=[stop], max_new_tokens=50, details=True, return_full_text=False)
    assert output.details.finish_reason == "stop_sequence"
    assert output.generated_text.endswith(stop)
    assert expected_text(PROMPT, 50).startswith(output.generated_text)


async def test_seed_is_echoed_when_sampling():
    async with client(Script(tokens=1)) as (hub, _):
        for do_sample, seed in ((True, 11), (False, None)):
            output = await hub.text_generation(PROMPT, details=True, seed=11, do_sample=do_sample)
            assert output.details.seed == seed


async def test_characters_split_over_tokens_arrive_whole():
    async with client(Script(tokens=80, split_characters=True)) as (hub, _):
        stream = await hub.text_generation(PROMPT, stream=True, details=True, return_full_text=False)
        outputs = [output async for output in stream]
    text = expected_text(PROMPT, 80, split_characters=True)
    assert "".join(o.token.text for o in outputs if not o.token.special) == outputs[-1].generated_text == text
    assert any(o.token.text == "" for o in outputs)


async def test_chat_whole_and_streamed():
    async with client(Script(tokens=12)) as (hub, _):
        text = expected_text(render(MESSAGES), 12)
        whole = await hub.chat_completion(MESSAGES, max_tokens=50, logprobs=True, top_logprobs=2)
        assert whole.choices[0].message.content == text
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage.completion_tokens == 13
        assert len(whole.choices[0].logprobs.content) == 13
        *deltas, usage = await consume(
            await hub.chat_completion(MESSAGES, stream=True, max_tokens=5, stream_options={"include_usage": True})
        )
    assert "".join(chunk.choices[0].delta.content for chunk in deltas) == expected_text(render(MESSAGES), 5)
    assert deltas[-1].choices[0].finish_reason == "length"
    assert usage.usage.total_tokens == usage.usage.prompt_tokens + 5


@pytest.mark.parametrize("stream", [False, True])
async def test_bad_parameters_are_a_validation_error(stream):
    async with client() as (hub, _):
        with pytest.raises(ValidationError, match=r"`top_p` must be > 0\.0 and < 1\.0"):
            await consume(await hub.text_generation(PROMPT, top_p=1.0, stream=stream))


@pytest.mark.parametrize("stream", [False, True])
async def test_too_many_requests_are_an_overloaded_error(stream):
    async with client(limits=Limits(max_concurrent_requests=0)) as (hub, _):
        with pytest.raises(OverloadedError, match="Model is overloaded"):
            await consume(await hub.text_generation(PROMPT, stream=stream))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error_type", "expected"),
    [("generation", GenerationError), ("incomplete_generation", IncompleteGenerationError)],
)
async def test_a_failing_model_is_its_error(error_type, expected, stream):
    fault = Fault(kind="error", after_tokens=2, error="it broke", error_type=error_type)
    async with client(Script(faults=(fault,))) as (hub, _):
        with pytest.raises(expected, match="it broke"):
            await consume(await hub.text_generation(PROMPT, stream=stream))


async def test_a_waking_endpoint_is_an_http_error_with_its_header():
    fault = Fault(kind="status", status=503, headers={"retry-after": "3"})
    async with client(Script(faults=(fault,))) as (hub, _):
        with pytest.raises(HfHubHTTPError) as failed:
            await hub.text_generation(PROMPT)
    assert failed.value.response.status_code == 503
    assert failed.value.response.headers["retry-after"] == "3"


async def test_transport_faults_are_httpx2_errors():
    cases = [
        (Fault(kind="refuse"), httpx2.TransportError),
        (Fault(kind="reset", after_tokens=2), httpx2.ReadError),
        (Fault(kind="close", after_tokens=2), httpx2.RemoteProtocolError),
        (Fault(kind="stall", after_tokens=2), httpx2.ReadTimeout),
        (Fault(kind="slow_headers"), InferenceTimeoutError),
    ]
    for fault, expected in cases:
        async with client(Script(faults=(fault,)), timeout_s=0.3) as (hub, _):
            with pytest.raises(expected):
                await consume(await hub.text_generation(PROMPT, stream=True))


async def test_a_cut_stream_raises_nothing():
    async with client(Script(faults=(Fault(kind="cut", after_tokens=2),))) as (hub, _):
        outputs = await consume(await hub.text_generation(PROMPT, stream=True, details=True))
    assert [output.generated_text for output in outputs] == [None, None]


async def test_a_closed_stream_closes_the_call():
    async with client(Script(itl_s=0.05)) as (hub, served):
        stream = await hub.text_generation(PROMPT, stream=True)
        async for _ in stream:
            break
        await stream.aclose()
        async with asyncio.timeout(5):
            while served.requests()[0]["state"] == "running":
                await asyncio.sleep(0.005)
        assert served.requests()[0]["state"] == "dropped"
        assert served.requests()[0]["tokens_sent"] < 20


async def test_the_synchronous_client():
    def calls(url):
        with InferenceClient(model=url, timeout=5) as hub:
            text = hub.text_generation(PROMPT, max_new_tokens=5, return_full_text=False)
            streamed = list(hub.text_generation(PROMPT, max_new_tokens=5, stream=True, return_full_text=False))
            chat = hub.chat_completion(MESSAGES, max_tokens=5)
            with pytest.raises(ValidationError):
                hub.text_generation(PROMPT, max_new_tokens=0)
            return text, "".join(streamed), chat.choices[0].message.content

    async with serve() as served:
        text, streamed, chat = await asyncio.to_thread(calls, served.url)
    assert text == streamed == expected_text(PROMPT, 5)
    assert chat == expected_text(render(MESSAGES), 5)


async def consume(answer):
    """Everything of a stream; an answer that is none stays as it is."""
    return [output async for output in answer] if hasattr(answer, "__aiter__") else answer
