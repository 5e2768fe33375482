"""Chats as the engines stream them: each one's own bytes over a real connection, through the worker's transport.

Checked are also what huggingface_hub alone gets wrong: errors as objects, connections that are not used again.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from pydantic_core import to_json

from genqueue.settings import GeneratorSettings
from genqueue.wire.events import ToolCallDelta
from genqueue.wire.request import read_request
from genqueue.wire.result import GenerationResult
from genqueue_ops.standin.server import cleanup
from genqueue_worker.observe.metrics import Metrics
from genqueue_worker.upstream.client import ModelClient
from genqueue_worker.upstream.faults import Fault, UpstreamError, fault_of
from genqueue_worker.upstream.fields import encodable
from genqueue_worker.upstream.pool import EndpointPool
from genqueue_worker.upstream.transport import open_transport

DONE = "[DONE]"
USAGE = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}


class Heard:
    """A sink that keeps what it is given."""

    is_congested = False

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.calls: list[ToolCallDelta] = []
        self.deltas = 0
        self.kept_bytes = 0
        self.closed_after: int | None = None

    def push_delta(self, text: str, reasoning: str = "", tool_calls: Sequence[ToolCallDelta] = ()) -> None:
        self.text += text
        self.reasoning += reasoning
        self.calls += tool_calls
        self.deltas += 1

    @property
    def completion_tokens(self) -> int:
        return self.deltas

    def keep(self, size_bytes: int) -> None:
        self.kept_bytes += size_bytes

    def close(self) -> None:
        self.closed_after = self.deltas


class Engine:
    """Answers every chat with the events it was given, and counts its connections."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.separator = b"\n\n"
        self.ends_after_s = 0.0
        self.elsewhere: str | None = None
        self.whole: tuple[str | None, list[bytes]] | None = None
        self.connections: set[object] = set()
        self.left = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.connections.add(request.transport)
        await request.read()
        if self.elsewhere is not None:
            return web.Response(status=307, headers={"location": self.elsewhere})
        kind, parts = self.whole or ("text/event-stream", [])
        response = web.StreamResponse(headers={"content-type": kind} if kind else {})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(0.01)
        for event in self.events:
            data = event if isinstance(event, str) else json.dumps(event)
            await response.write(b"data: " + data.encode() + self.separator)
        try:
            await asyncio.sleep(self.ends_after_s)
        finally:
            self.left.set()
        return response


@asynccontextmanager
async def serving(engine):
    app = web.Application()
    app.router.add_post("/v1/chat/completions", engine.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await cleanup(runner)


@pytest.fixture
async def engine():
    return Engine()


@pytest.fixture
async def chat(engine):
    """``await chat(*events, **generation_kwargs)``: (what the sink heard, the ending)."""
    transport = open_transport()
    async with serving(engine) as url:
        settings = GeneratorSettings.model_validate(
            {"api_type": "text_generation_inference", "api_params": {"url": f"{url}/v1"}}
        )
        upstream, meter = EndpointPool("chat", settings, {}, lambda: None), Metrics({"chat": settings}).of("chat")
        generator = ModelClient(upstream, meter, 1_000_000)

        async def run(*events, heard=None, **kwargs):
            heard = heard or Heard()
            engine.events = list(events)
            request = read_request({"messages": [{"role": "user", "content": "hi"}], "generation_kwargs": kwargs})
            ending = await generator.run(request.given, generator.parameters(request), heard)
            return heard, ending

        yield run
        await transport.close()


def delta(finish_reason=None, more=None, **fields):
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": fields, "logprobs": None, "finish_reason": finish_reason}],
        **(more or {}),
    }


def choice(index, content=None, finish_reason=None):
    return {"index": index, "delta": {"content": content}, "logprobs": None, "finish_reason": finish_reason}


def piece(index=0, call_id=None, name=None, arguments=None, **more):
    function = {key: value for key, value in {"name": name, "arguments": arguments}.items() if value is not None}
    return {"index": index, **({"id": call_id, "type": "function"} if call_id else {}), "function": function, **more}


def usage(**more):
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": USAGE, **more}


async def test_llama_cpp(chat):
    """The role comes first with no content, the end has an empty delta, and the usage brings timings."""
    heard, ending = await chat(
        delta(role="assistant", content=None),
        delta(content="It"),
        delta(content=" is."),
        delta("stop"),
        usage(timings={"predicted_n": 2}),
        DONE,
    )
    assert (heard.text, heard.closed_after) == ("It is.", 3)
    assert (ending.finish_reason, ending.prompt_tokens, ending.completion_tokens, ending.extra) == ("stop", 7, 9, {})


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_vllm_and_sglang_name_thoughts_differently(chat, field):
    heard, ending = await chat(
        delta(role="assistant", content=""),
        delta(**{field: "Hm"}),
        delta(**{field: ", so", "content": None}),
        delta(content="Yes", **{field: None}),
        delta("stop", {"stop_reason": None}, content=""),
        usage(),
        DONE,
    )
    assert (heard.reasoning, heard.text) == ("Hm, so", "Yes")
    named = {} if field == "reasoning_content" else {"reasoning_field": field}
    assert ending.extra == {"reasoning": "Hm, so", **named}


async def test_a_refusal_is_text_and_told_apart(chat):
    """OpenAI and Azure say it in place of the content, which every other event has as null, or leaves out."""
    heard, ending = await chat(
        delta(role="assistant", content="", refusal=None),
        delta(refusal="I'm "),
        delta(refusal="sorry.", content=None),
        delta("stop"),
        usage(),
        DONE,
    )
    assert (heard.text, heard.deltas) == ("I'm sorry.", len(["I'm ", "sorry.", "the end"]))
    assert (ending.finish_reason, ending.extra) == ("stop", {"refusal": "I'm sorry."})


async def test_half_a_character_ends_no_chat(chat):
    """JSON can spell half of a surrogate pair; no result could hold it."""
    half = "\ud83d"
    _, ending = await chat(
        delta(refusal=half, reasoning=half, tool_calls=[piece(0, "0", "f", half)]), delta("stop"), DONE
    )
    to_json(ending.extra)
    assert ending.extra["refusal"] == "\ufffd"
    assert (ending.extra["reasoning"], ending.extra["tool_calls"][0]["function"]["arguments"]) == ("\ufffd", "\ufffd")


async def test_the_last_event_may_bring_text_or_thoughts(chat):
    heard, ending = await chat(delta(content="a"), delta("length", content="b", reasoning_content="c"), usage(), DONE)
    assert (heard.text, heard.reasoning, ending.extra) == ("ab", "c", {"reasoning": "c"})


async def test_usage_in_every_event(chat):
    """As ``continuous_usage_stats`` and some providers have it; the last one counts."""
    first = {"usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}}
    _, ending = await chat(delta(None, first, content="a"), delta("stop", {"usage": USAGE}), DONE)
    assert (ending.prompt_tokens, ending.completion_tokens) == (7, 9)


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([[choice(0, "A1")], [choice(1, "B1")], [choice(1, "B2")], [choice(0, "A2")]], id="in-turns"),
        pytest.param([[choice(0, "A1"), choice(1, "B1")], [choice(1, "B2"), choice(0, "A2")]], id="together"),
        pytest.param([[choice(1, "B1", "stop")], [choice(0, "A1")], [choice(0, "A2")]], id="one-ends-first"),
        pytest.param([[choice(None, "A1"), choice(1, "B1")], [{"delta": {"content": "A2"}}]], id="no-index"),
    ],
)
async def test_of_several_answers_the_first_is_the_reply(chat, events):
    heard, ending = await chat(
        *({**delta(), "choices": choices} for choices in events),
        {**delta(), "choices": [choice(1, finish_reason="length"), choice(0, finish_reason="stop")]},
        usage(),
        DONE,
    )
    assert (heard.text, ending.finish_reason, ending.completion_tokens) == ("A1A2", "stop", 9)
    assert heard.closed_after == heard.deltas == len(["A1", "A2", "the end"])


async def test_an_end_of_another_answer_is_none_of_the_reply(chat):
    with pytest.raises(UpstreamError, match="the stream ended without its end marker"):
        await chat(delta(content="a"), {**delta(), "choices": [choice(1, "b", "stop")]})


async def test_parallel_tool_calls_are_kept_apart(chat):
    heard, ending = await chat(
        delta(role="assistant", content=None),
        delta(tool_calls=[piece(0, "call-a", "f", "")]),
        delta(tool_calls=[piece(0, arguments='{"x":')]),
        delta(tool_calls=[piece(0, arguments=" 1}")]),
        delta(tool_calls=[piece(1, "call-b", "g", "{"), piece(1, arguments="}")]),
        delta("tool_calls"),
        usage(),
        DONE,
    )
    assert ending.extra["tool_calls"] == [
        {"id": "call-a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "call-b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert [(call.index, call.id, call.name) for call in heard.calls] == [
        (0, "call-a", "f"),
        (0, None, None),
        (0, None, None),
        (1, "call-b", "g"),
        (1, None, None),
    ]
    assert ending.finish_reason == "tool_calls"


async def test_a_custom_tools_call_is_a_part_of_the_next_turn(chat):
    """OpenAI's: its input is a text, and streams in pieces as arguments do."""
    heard, ending = await chat(
        delta(tool_calls=[{"index": 0, "id": "c", "type": "custom", "custom": {"name": "sql", "input": ""}}]),
        delta(tool_calls=[{"index": 0, "custom": {"input": "select "}}]),
        delta(tool_calls=[{"index": 0, "custom": {"input": "{}"}}]),
        delta(tool_calls=[piece(1, "call-b", "g", "{}")]),
        delta("tool_calls"),
        usage(),
        DONE,
    )
    calls = [
        {"id": "c", "type": "custom", "custom": {"name": "sql", "input": "select {}"}},
        {"id": "call-b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert ending.extra == {"tool_calls": calls}
    assert "".join(call.arguments for call in heard.calls if call.index == 0) == "select {}"
    message = GenerationResult(replies=[heard.text], meta=[ending.extra]).message
    given = read_request({"messages": [{"role": "user", "content": "hi"}, message]}).given
    assert given[1] == {"role": "assistant", "tool_calls": calls}


@pytest.mark.parametrize("second", [0, 1, None], ids=["same-index", "next-index", "no-index"])
async def test_calls_with_ids_and_names_of_their_own_are_calls_of_their_own(chat, second):
    _, ending = await chat(
        delta(tool_calls=[piece(0, "call-a", "f", '{"x":')]),
        delta(tool_calls=[piece(0, arguments="0}")]),
        delta(tool_calls=[piece(second, "call-b", "g", '{"x":')]),
        delta(tool_calls=[piece(second, arguments="1}")]),
        delta("tool_calls"),
        DONE,
    )
    functions = [
        (call["id"], call["function"]["name"], call["function"]["arguments"]) for call in ending.extra["tool_calls"]
    ]
    assert functions == [("call-a", "f", '{"x":0}'), ("call-b", "g", '{"x":1}')]


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(
            [delta(tool_calls=[piece(0, "0", "f", "{")]), delta(tool_calls=[piece(0, "0", None, "}")])],
            id="tgi-repeats-the-id",
        ),
        pytest.param(
            [delta(tool_calls=[piece(0, "0", "f", "{")]), delta(tool_calls=[piece(0, "0", "f", "}")])],
            id="name-and-id-in-every-piece",
        ),
        pytest.param(
            [delta(tool_calls=[piece(None, "0", "f", "{")]), delta(tool_calls=[piece(None, arguments="}")])],
            id="no-index",
        ),
        pytest.param([delta(tool_calls=piece(0, "0", "f", "{}"))], id="old-tgi-no-list"),
        pytest.param([delta(tool_calls=[piece(0, "0", "f", {"x": 1})])], id="arguments-no-string"),
        pytest.param([delta("tool_calls", tool_calls=[piece(0, "0", "f", "{}")])], id="with-the-end"),
    ],
)
async def test_a_tool_call_however_it_is_told(chat, events):
    heard, ending = await chat(*events, DONE)
    (call,) = ending.extra["tool_calls"]
    assert (call["id"], call["type"], call["function"]["name"]) == ("0", "function", "f")
    assert call["function"]["arguments"] in {"{}", '{"x":1}'}
    assert [call.id for call in heard.calls] == ["0", *[None] * (len(heard.calls) - 1)]
    assert [call.name for call in heard.calls] == ["f", *[None] * (len(heard.calls) - 1)]
    assert ending.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("pieces", "max_tokens", "finish_reason"),
    [
        pytest.param([piece(0, "0", "f", '{"city": "Par')], 9, "length", id="cut"),
        pytest.param([piece(0, "0", "f", '{"city": "Par')], 8, "length", id="cut-late"),
        pytest.param([piece(0, "0", "f", "")], 9, "length", id="cut-before-its-arguments"),
        pytest.param([piece(0, "0", "f", "{}"), piece(1, "1", "g", '{"x": 1')], 9, "length", id="the-second-is-cut"),
        pytest.param([], 9, "length", id="cut-before-its-name"),
        pytest.param([piece(0, "0", "f", '{"city": "Paris"}')], 9, "tool_calls", id="whole"),
        pytest.param([piece(0, "0", "f", '{"city": "Par')], 10, "tool_calls", id="odd-with-room-left"),
    ],
)
async def test_a_tool_call_that_the_limit_cut_is_none_that_ended(chat, pieces, max_tokens, finish_reason):
    """TGI sends nothing of a call before it knows its name, and may end one without a word."""
    heard, ending = await chat(*(delta(tool_calls=[each]) for each in pieces), usage(), DONE, max_tokens=max_tokens)
    assert (ending.finish_reason, ending.completion_tokens, heard.text) == (finish_reason, 9, "")
    arguments = [call["function"]["arguments"] for call in ending.extra.get("tool_calls", ())]
    assert arguments == [each["function"]["arguments"] for each in pieces]


async def test_the_servers_own_word_for_the_end_of_a_call_stands(chat):
    cut = delta("tool_calls", tool_calls=[piece(0, "0", "f", "{")])
    _, ending = await chat(cut, usage(), DONE, max_tokens=9)
    assert ending.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([delta(content="a")], id="no-end"),
        pytest.param([], id="nothing"),
        pytest.param([DONE], id="done-and-nothing-else"),
        pytest.param([delta(tool_calls=[piece(0, "0", "f", "{")])], id="half-a-call"),
        pytest.param([usage()], id="usage-only"),
        pytest.param([usage(), DONE], id="tokens-and-no-text-with-room-left"),
    ],
)
async def test_a_stream_that_breaks_off_is_no_answer(chat, events):
    """huggingface_hub takes a clean end of the body for the end of the answer."""
    with pytest.raises(UpstreamError) as failed:
        await chat(*events)
    assert failed.value.facts.error_type == "incomplete_generation_stream"
    assert fault_of(failed.value.facts) is Fault.SERVER


async def test_an_end_without_done_is_an_end(chat):
    heard, ending = await chat(delta(content="a"), delta("stop"))
    assert (heard.text, ending.finish_reason, ending.completion_tokens) == ("a", "stop", None)


@pytest.mark.parametrize(
    ("event", "words", "fault"),
    [
        pytest.param(
            {"error": {"message": "Model is overloaded", "http_status_code": 422}},
            "Model is overloaded",
            Fault.CAPACITY,
            id="tgi-full",
        ),
        pytest.param(
            {"error": {"message": "Request failed during generation: oom", "http_status_code": 422}},
            "Request failed during generation: oom",
            Fault.SERVER,
            id="tgi-failed",
        ),
        pytest.param(
            {"error": {"message": "Input validation error: `top_p` must be …", "http_status_code": 422}},
            "Input validation error: `top_p` must be …",
            Fault.REQUEST,
            id="tgi-refuses",
        ),
        pytest.param(
            {"error": {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}},
            "too long",
            Fault.REQUEST,
            id="vllm",
        ),
        pytest.param(
            {"object": "error", "message": "engine died", "type": "InternalServerError", "code": 500},
            "engine died",
            Fault.SERVER,
            id="vllm-once",
        ),
        pytest.param(
            {"error": {"code": 500, "message": "Failed to parse tools: …", "type": "server_error"}},
            "Failed to parse tools: …",
            Fault.REQUEST,
            id="llama-cpp",
        ),
        pytest.param({"error": "no words"}, "no words", Fault.SERVER, id="a-string"),
        pytest.param(
            {"error": {"code": "rate_limit_exceeded"}},
            'the server reports an error without words; it says {"error":{"code":"rate_limit_exceeded"}}',
            Fault.CAPACITY,
            id="no-message",
        ),
        pytest.param("no JSON", "the stream is no JSON: no JSON", Fault.SERVER, id="no-json"),
        pytest.param(
            5,
            "the server's answer is none of TGI's or OpenAI's: an event is no object; it says 5",
            Fault.SERVER,
            id="a-number",
        ),
    ],
)
async def test_an_error_in_the_stream_is_one(chat, event, words, fault):
    with pytest.raises(UpstreamError) as failed:
        await chat(delta(content="a"), event, DONE)
    assert failed.value.facts.message == words
    assert fault_of(failed.value.facts) is fault


def choice_with(delta=None, **fields):
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": None, **fields}]}


FULL = {"code": 429, "message": "slow down"}


@pytest.mark.parametrize("end", ["stop", "error", None])
@pytest.mark.parametrize(
    ("event", "words", "fault"),
    [
        pytest.param(choice_with(error=FULL), "slow down", Fault.CAPACITY, id="openrouter"),
        pytest.param(choice_with(error=FULL, finish_reason="error"), "slow down", Fault.CAPACITY, id="with-its-end"),
        pytest.param(choice_with(error=FULL, finish_reason="stop"), "slow down", Fault.CAPACITY, id="with-a-good-end"),
        pytest.param(choice_with({"content": "b"}, error=FULL), "slow down", Fault.CAPACITY, id="beside-a-text"),
        pytest.param(choice_with({"content": "b", "error": FULL}), "slow down", Fault.CAPACITY, id="in-the-delta"),
        pytest.param(choice_with(message={"error": FULL}), "slow down", Fault.CAPACITY, id="in-a-message"),
        pytest.param(
            choice_with(error={"code": 502, "message": "boom", "metadata": {"raw": "x"}}),
            "boom",
            Fault.SERVER,
            id="502",
        ),
        pytest.param(choice_with(error={"code": "400", "message": "too long"}), "too long", Fault.REQUEST, id="spelt"),
        pytest.param(choice_with(error="boom"), "boom", Fault.SERVER, id="a-text"),
        pytest.param(choice_with(error=["boom"]), "boom", Fault.SERVER, id="a-list"),
        pytest.param(
            choice_with(error={"code": 503}),
            'the server reports an error without words; it says {"error":{"code":503}}',
            Fault.CAPACITY,
            id="no-words",
        ),
        pytest.param({"choices": {"error": "boom"}}, "boom", Fault.SERVER, id="a-choice-without-a-list"),
    ],
)
async def test_an_error_in_an_answer_is_one_however_it_ends(chat, event, words, fault, end):
    with pytest.raises(UpstreamError) as failed:
        await chat(delta(content="a"), event, delta(end), usage(), DONE)
    assert (failed.value.facts.message, fault_of(failed.value.facts)) == (words, fault)


@pytest.mark.parametrize("error", [None, "", {}, [], False])
async def test_a_void_error_in_an_answer_is_none(chat, error):
    heard, _ = await chat(choice_with({"content": "a", "error": error}, error=error), delta("stop"), DONE)
    assert heard.text == "a"


async def test_an_error_of_another_answer_is_none_of_the_reply(chat):
    heard, _ = await chat({"choices": [{**choice(1), "error": FULL}, choice(0, "a")]}, delta("stop"), DONE)
    assert heard.text == "a"


@pytest.mark.parametrize("word", ["error", "abort", "network_error", "insufficient_system_resource"])
@pytest.mark.parametrize("last", [{}, {"content": ""}, {"content": "lo"}])
async def test_an_answer_that_its_server_gave_up_is_no_answer(engine, chat, word, last):
    """As vLLM and SGLang end what they abort; what came by then is text, and the end no token of it."""
    heard = Heard()
    with pytest.raises(UpstreamError, match=f"the server ended its answer with '{word}'") as failed:
        await chat(delta(content="hel"), delta(word, **last), usage(), DONE, heard=heard)
    assert fault_of(failed.value.facts) is Fault.SERVER
    said = last.get("content", "")
    assert (heard.text, heard.deltas) == ("hel" + said, 2 if said else 1)


@pytest.mark.parametrize("word", ["content_filter", "model_length", "function_call", "aborted by a stop word"])
async def test_a_word_for_the_end_that_nobody_knows_is_an_end(chat, word):
    heard, ending = await chat(delta(content="a"), delta(word), usage(), DONE)
    assert (heard.text, ending.finish_reason) == ("a", word)


@pytest.mark.parametrize("separator", [b"\n\n", b"\r\n\r\n", b"\n"])
@pytest.mark.parametrize("done", ["[DONE]", "[DONE]\n"])
async def test_lines_end_as_they_like(engine, chat, separator, done):
    engine.separator = separator
    heard, ending = await chat(delta(content="a"), delta("stop"), done)
    assert (heard.text, ending.finish_reason) == ("a", "stop")


async def test_chats_use_their_connection_again(engine, chat):
    """huggingface_hub leaves the body's end unread, and so opens one for each."""
    engine.ends_after_s = 0.01  # the body's end comes by itself, behind the last event
    for _ in range(20):
        await chat(delta(content="a"), delta("stop"), usage(), DONE)
    assert len(engine.connections) == 1


async def test_a_body_that_does_not_end_after_its_last_word_holds_nobody_up(engine, chat):
    engine.ends_after_s = 60.0
    async with asyncio.timeout(10):
        heard, ending = await chat(delta(content="a"), delta("stop"), DONE)
        await engine.left.wait()
    assert (heard.text, ending.finish_reason) == ("a", "stop")


@pytest.mark.parametrize("elsewhere", ["{other}/v1/chat/completions?key=canary", "/v1/chat/completions/", "gopher://x"])
async def test_no_server_sends_a_call_and_its_headers_elsewhere(chat, engine, elsewhere):
    other = Engine()
    async with serving(other) as url:
        engine.elsewhere = elsewhere.format(other=url)
        with pytest.raises(UpstreamError, match="HTTP 307: the server sends us to") as refused:
            await chat(delta("stop"), DONE)
    assert other.connections == set()
    assert "canary" not in str(refused.value)
    assert fault_of(refused.value.facts) is Fault.ENDPOINT


def whole(finish_reason="stop", **message):
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": USAGE}


THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}


@pytest.mark.parametrize(
    ("events", "text", "reasoning"),
    [
        pytest.param([delta(content=[THINKING]), delta(content=[{"type": "text", "text": "Yes"}])], "Yes", "Hm"),
        pytest.param([delta(content=[THINKING, {"type": "text", "text": "Yes"}])], "Yes", "Hm", id="in-one"),
        pytest.param(
            [delta(content=[{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Yes"}])],
            "Yes",
            "Hm",
            id="thoughts-as-text",
        ),
        pytest.param([delta(content={"type": "text", "text": "Yes"})], "Yes", "", id="one-part-no-list"),
        pytest.param([delta(content=[{"type": "output_text", "text": "Yes"}])], "Yes", "", id="of-another-type"),
        pytest.param([delta(content=[{"type": "refusal", "refusal": "No"}])], "No", "", id="refusal"),
        pytest.param(
            [delta(content=[{"type": "reference", "reference_ids": [1]}, {"type": "text", "text": "Yes"}])],
            "Yes",
            "",
            id="citation",
        ),
        pytest.param([delta(content=[]), delta(content="Yes")], "Yes", "", id="no-parts"),
        pytest.param([delta(text="Yes")], "Yes", "", id="text-in-the-delta"),
        pytest.param([{"choices": [{"index": 0, "delta": "Yes"}]}], "Yes", "", id="delta-is-text"),
        pytest.param([{"choices": [{"index": 0, "delta": None, "text": "Yes"}]}], "Yes", "", id="as-a-completion"),
        pytest.param([{"choices": [{"index": "0", "message": {"content": "Yes"}}]}], "Yes", "", id="message"),
        pytest.param([{"choices": [{"delta": {"reasoning": "Hm", "content": "Yes"}}]}], "Yes", "Hm", id="both-in-one"),
    ],
)
async def test_text_is_found_wherever_it_is(chat, events, text, reasoning):
    heard, ending = await chat(*events, delta("stop"), usage(), DONE)
    assert (heard.text, heard.reasoning, ending.finish_reason) == (text, reasoning, "stop")
    assert ending.extra.get("reasoning", "") == reasoning


@pytest.mark.parametrize(
    ("events", "words"),
    [
        pytest.param(
            [delta(content=[{"type": "image_url", "image_url": {"url": "data:,"}}])], "no text, it is image_url"
        ),
        pytest.param([delta(content=[5])], "a part of a content is int", id="a-number-as-part"),
        pytest.param([delta(content=5)], "a content is int", id="a-number"),
        pytest.param([{"choices": ["x"]}], "it says", id="no-object"),
        pytest.param([{"choices": [{"delta": ["x"]}]}], "a delta is list", id="delta-is-a-list"),
        pytest.param([delta(output="Yes"), delta("stop")], "no text that we know; it says output", id="another-name"),
        pytest.param(
            [{"type": "response.output_text.delta", "delta": "Yes"}, delta("stop")],
            "no text that we know",
            id="another-route",
        ),
        pytest.param(
            [{"response": "Yes"}, delta("stop"), usage()], "no text that we know; it says response", id="no-choices"
        ),
        pytest.param(
            [delta(tool_calls=[{"index": 0, "id": "a", "function": {"arguments": "{}"}}]), delta("tool_calls")],
            "a tool call has no name; it says {}",
            id="nameless",
        ),
    ],
)
async def test_what_cannot_be_read_is_a_failure_that_says_what_was_seen(chat, events, words):
    with pytest.raises(UpstreamError, match=words) as failed:
        await chat(*events, DONE)
    assert fault_of(failed.value.facts) is Fault.SERVER


def lines(*events):
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


OLLAMAS = {"model": "m", "message": {"role": "assistant", "content": "Hi"}, "done": False}
GEMINIS = {"candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}]}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param("application/x-ndjson", lines(OLLAMAS, {**OLLAMAS, "done": True}), id="ollamas-lines"),
        pytest.param("application/json", lines({**OLLAMAS, "done": True}), id="ollamas-answer"),
        pytest.param("application/x-ndjson", lines({"response": "Hi"}, {"done": True}), id="ollamas-generate"),
        pytest.param("application/json", json.dumps([GEMINIS, GEMINIS]).encode(), id="geminis-list"),
        pytest.param("application/json", json.dumps(GEMINIS).encode(), id="geminis-answer"),
        pytest.param("text/event-stream", b"data: " + lines(GEMINIS) + b"\n", id="geminis-event"),
        pytest.param(
            "text/event-stream",
            b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","content":[]}}\n\n'
            b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"Hi"}}\n\n'
            b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
            id="anthropics",
        ),
        pytest.param(
            "text/event-stream",
            b'data: {"type":"response.output_text.delta","delta":"Hi"}\n\n'
            b'data: {"type":"response.completed","response":{"usage":{"input_tokens":1}}}\n\ndata: [DONE]\n\n',
            id="openais-responses",
        ),
        pytest.param("application/json", b'{"outputs":[{"data":["Hi"]}]}', id="tritons"),
    ],
)
async def test_another_dialect_is_shown(engine, chat, kind, body):
    engine.whole = kind, [body]
    seen = re.escape(body[body.index(b"{") :][:15].decode())
    with pytest.raises(UpstreamError, match=f"no end that we know; it says .?{seen}") as failed:
        await chat()
    assert fault_of(failed.value.facts) is Fault.SERVER


async def test_a_stream_that_breaks_off_behind_an_event_without_choices_only_broke_off(chat):
    with pytest.raises(UpstreamError, match="without its end marker"):
        await chat({"type": "start", "route": "x"}, delta(content="a"))


@pytest.mark.parametrize("tokens", [0, 1, None])
async def test_a_model_may_end_at_once(chat, tokens):
    """As TGI and vLLM say it; what else a server has there is none of its text."""
    counted = {**usage(), "usage": {"prompt_tokens": 7, "completion_tokens": tokens}}
    more = {"vendor": "x"} if tokens else {}
    heard, ending = await chat(delta(role="assistant", content=""), delta("stop", **more), counted, DONE)
    assert (heard.text, ending.finish_reason, ending.extra) == ("", "stop", {})


@pytest.mark.parametrize("cut", ["content", "reasoning", "arguments"])
async def test_a_character_that_is_cut_in_two_is_one(chat, cut):
    def half(said):
        return delta(tool_calls=[piece(0, "1", "f", said)]) if cut == "arguments" else delta(**{cut: said})

    heard, ending = await chat(half("a\ud83d"), half("\ude00b"), delta("stop"), DONE)
    arguments = "".join(call.arguments for call in heard.calls)
    told = {"content": heard.text, "reasoning": heard.reasoning, "arguments": arguments}[cut]
    assert encodable(told) == "a\U0001f600b"
    if cut != "content":
        assert "a\U0001f600b" in json.dumps(ending.extra, ensure_ascii=False)


@pytest.mark.parametrize(
    ("kind", "said", "text", "count"),
    [
        ("text/event-stream; charset=iso-8859-1", b"caf\xe9", "caf\ufffd", 1),
        ("text/event-stream; charset=iso-8859-1", "caf\u00e9".encode(), "caf\u00e9", 0),
        ("text/event-stream", b"caf\xe9", "caf\ufffd", 1),
        ("application/json; charset=iso-8859-1", b"caf\xe9", "caf\ufffd", 1),
    ],
)
async def test_a_reply_that_is_no_utf_8_says_so(engine, chat, kind, said, text, count):
    end = json.dumps(whole(content="@")).encode().replace(b"@", said)
    engine.whole = kind, [b"data: " + end + b"\n\n" if "event" in kind else end]
    heard, ending = await chat()
    assert encodable(heard.text) == text
    told = ending.extra["lost_characters"]
    assert told["count"] == count and ("iso-8859-1" in told["why"]) == ("iso" in kind)


async def test_a_reply_in_utf_8_says_nothing_of_it(engine, chat):
    engine.whole = "text/event-stream; charset=UTF-8", [b""]
    _, ending = await chat(delta(content="caf\u00e9"), delta("stop"), DONE)
    assert "lost_characters" not in ending.extra


KINDS = ["application/json", "text/event-stream", "text/plain; charset=utf-8", None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("said", "text", "finish_reason"),
    [
        pytest.param(whole(content="Yes"), "Yes", "stop", id="openais"),
        pytest.param(whole(None, content="Yes"), "Yes", None, id="no-finish-reason"),
        pytest.param(whole(content=[{"type": "text", "text": "Yes"}]), "Yes", "stop", id="parts"),
        pytest.param([whole(content="Yes")], "Yes", "stop", id="in-a-list"),
        pytest.param([delta(content="Y"), delta("length", content="es")], "Yes", "length", id="a-list-of-events"),
    ],
)
async def test_an_answer_in_one_piece_is_one(engine, chat, kind, said, text, finish_reason):
    """A gateway that ignores ``stream``."""
    data = json.dumps(said).encode()
    engine.whole = kind, [data[:9], data[9:]]
    heard, ending = await chat()
    assert (heard.text, ending.finish_reason) == (text, finish_reason)


async def test_an_answer_of_one_event_a_line_is_one(engine, chat):
    engine.whole = (
        "application/x-ndjson",
        [json.dumps(each).encode() + b"\n" for each in (delta(content="Yes"), delta("stop"))],
    )
    heard, ending = await chat()
    assert (heard.text, ending.finish_reason) == ("Yes", "stop")


async def test_an_answer_in_one_piece_calls_tools(engine, chat):
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    engine.whole = "application/json", [json.dumps(whole("tool_calls", content=None, tool_calls=calls)).encode()]
    _, ending = await chat()
    (call,) = ending.extra["tool_calls"]
    assert (call["id"], call["function"], ending.completion_tokens) == ("a", {"name": "f", "arguments": '{"x":1}'}, 9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begins", [b"", b"\n\n", b": hello\n\n", b"event: message\n", b"id: 1\nretry: 5\n"])
async def test_an_event_stream_is_one_by_any_name(engine, chat, kind, begins):
    event = json.dumps(delta(content="Yes")).encode()
    first = begins + b"data: " + event + b"\n\n"
    engine.whole = kind, [first[:2], first[2:]]
    heard, ending = await chat(delta("stop"), DONE)
    assert (heard.text, ending.finish_reason) == ("Yes", "stop")


LOGIN = b"<!DOCTYPE html>\n<html><head><title>Sign\n in</title></head><body>...</body></html>"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("body", "words", "fault"),
    [
        pytest.param(LOGIN, r"^the server answers with a web page \(.*\): Sign in$", Fault.ENDPOINT, id="login"),
        pytest.param(b"\n<p>down</p>", "web page .*: <p>down</p>", Fault.ENDPOINT, id="page-without-a-title"),
        pytest.param(
            b'{"error":"Input validation error: too long","error_type":"validation"}',
            "^Input validation error: too long$",
            Fault.REQUEST,
            id="tgis-error",
        ),
        pytest.param(
            b'{"error":{"message":"slow down","type":"rate_limit_error","code":429}}',
            "^slow down$",
            Fault.CAPACITY,
            id="openais-error",
        ),
        pytest.param(b'{"object":"error","message":"gone","code":401}', "^gone$", Fault.ENDPOINT, id="vllms-error"),
        pytest.param(b'{"detail":"Unauthorized"}', "^Unauthorized$", Fault.SERVER, id="fastapis-error"),
        pytest.param(b'{"error":"x"}\n', "^x$", Fault.SERVER, id="a-line"),
        pytest.param(b"{}", "without its end marker", Fault.SERVER, id="no-answer"),
        pytest.param(b"[]", "without its end marker", Fault.SERVER, id="no-answers"),
        pytest.param(b"[5]", "an event is no object", Fault.SERVER, id="a-number"),
        pytest.param(b'{"choices":', "the stream is no JSON: {", Fault.SERVER, id="half-an-answer"),
        pytest.param(b'{"choices":[]}', "without its end marker", Fault.SERVER, id="no-choice"),
        pytest.param(b'{"choices":[{"message":{"content":""}}]}', "without its end", Fault.SERVER, id="empty-text"),
        pytest.param(b"", "^the server's answer is empty$", Fault.SERVER, id="nothing"),
        pytest.param(b"\n \n", "^the server's answer is empty$", Fault.SERVER, id="blank"),
    ],
)
async def test_what_is_no_stream_and_no_answer_is_an_error_in_its_words(engine, chat, kind, body, words, fault):
    engine.whole = kind, [body] if body else []
    with pytest.raises(UpstreamError, match=words) as failed:
        await chat()
    assert fault_of(failed.value.facts) is fault


async def test_bare_words_are_shown(engine, chat):
    engine.whole = "text/plain", [b"upstream connect error\nor disconnect"]
    with pytest.raises(UpstreamError, match=r"no event stream \(text/plain\); it says upstream connect error or disc"):
        await chat()
