"""Event streams in every form that the standard allows (WHATWG HTML, section 9.2.6), and in some that engines have.

Over real connections, through the worker's transport, for prompts and chats; how they are cut is the server's choice.
"""

import asyncio
import json

import pytest

from genqueue.settings import GeneratorSettings
from genqueue.wire.request import read_request
from genqueue_ops.standin.server import stop_accepting
from genqueue_worker.observe.metrics import Metrics
from genqueue_worker.upstream.client import ModelClient
from genqueue_worker.upstream.faults import Fault, UpstreamError, fault_of
from genqueue_worker.upstream.pool import EndpointPool
from genqueue_worker.upstream.transport import open_transport

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
QUIET = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
MARK = b"\xef\xbb\xbf"
TEXT = " one two three"


class Heard:
    """A sink that keeps what it is given."""

    is_congested = False

    def __init__(self) -> None:
        self.parts: list[str] = []

    def push(self, token, text, top_tokens=None) -> None:
        self.parts.append(text)

    def push_delta(self, text, reasoning="", tool_calls=()) -> None:
        self.parts.append(text)

    @property
    def completion_tokens(self) -> int:
        return len(self.parts)

    def keep(self, size_bytes) -> None:
        pass

    def close(self) -> None:
        pass


class Server:
    """Answers every call with ``body``, cut into ``parts``, each a chunk and a write of its own."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.end = b"0\r\n\r\n"

    async def serve(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(size.split(b":")[1]))
            writer.write(HEAD)
            for part in self.parts:
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
                await asyncio.sleep(0.001)
            writer.write(self.end)
            await writer.drain()
        except (OSError, EOFError, StopIteration):
            pass
        finally:
            writer.close()


@pytest.fixture
async def server():
    return Server()


@pytest.fixture(params=[False, True], ids=["prompt", "chat"])
def is_chat(request):
    return request.param


@pytest.fixture
async def call(server, is_chat):
    """``await call(*parts)``: the text that the sink heard."""
    transport = open_transport()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()
    settings = GeneratorSettings.model_validate(
        {"api_type": "text_generation_inference", "api_params": {"url": f"http://{host}:{port}"}}
    )
    generator = ModelClient(EndpointPool("g", settings, {}, lambda: None), Metrics({"g": settings}).of("g"), 1_000_000)
    fields = {"messages": [{"role": "user", "content": "hi"}]} if is_chat else {"prompt": "hi"}
    request = read_request(fields)

    async def run(*parts):
        server.parts = list(parts)
        heard = Heard()
        async with asyncio.timeout(20):
            await generator.run(request.given, generator.parameters(request), heard)
        return "".join(heard.parts)

    yield run
    await stop_accepting(listening)
    listening.close()
    await transport.close()


def events_of(texts, is_chat):
    """What the server says of these tokens: the events' data."""
    if is_chat:
        said = [{"index": 0, "delta": {"content": text}, "finish_reason": None} for text in texts]
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        return [json.dumps({"choices": [choice]}, ensure_ascii=False) for choice in [*said, end]]
    return [
        json.dumps(
            {
                "token": {"id": 1, "text": text, "logprob": -0.5, "special": False},
                "generated_text": "".join(texts) if text is texts[-1] else None,
                "details": None,
            },
            ensure_ascii=False,
        )
        for text in texts
    ]


@pytest.fixture
def events(is_chat):
    return [event.encode() for event in events_of([" one", " two", " three"], is_chat)]


def lines(event, eol=b"\n"):
    """One event, pretty: a data line for each line of it."""
    pretty = event if event == b"[DONE]" else json.dumps(json.loads(event), indent=1).encode()
    return eol.join([b"data: " + line for line in pretty.split(b"\n")]) + eol + eol


SHAPES = {
    "plain": lambda events: b"".join(b"data: %s\n\n" % event for event in events),
    "no-space": lambda events: b"".join(b"data:%s\n\n" % event for event in events),
    "crlf": lambda events: b"".join(b"data: %s\r\n\r\n" % event for event in events),
    "cr": lambda events: b"".join(b"data: %s\r\r" % event for event in events),
    "line-ends-mixed": lambda events: b"".join(b"data: %s\r\n\r" % event for event in events),
    "mark": lambda events: MARK + b"".join(b"data: %s\n\n" % event for event in events),
    "marks": lambda events: b"".join(MARK + b"data: %s\n\n" % event for event in events),
    "marks-crlf": lambda events: b"".join(MARK + MARK + b"data: %s\r\n\r\n" % event for event in events),
    "several-data-lines": lambda events: b"".join(map(lines, events)),
    "several-data-lines-cr": lambda events: b"".join(lines(event, b"\r") for event in events),
    "heartbeats": lambda events: b"".join(
        b"data:\n\n: ping\n\ndata: \n\ndata\n\ndata: %s\n\n" % event for event in events
    ),
    "all-fields": lambda events: (
        b"retry: 100\n\n" + b"".join(b"event: message\nid: 1\n:\ndata: %s\nx: y\n\n" % e for e in events)
    ),
    "no-empty-lines": lambda events: b"".join(b"data: %s\n" % event for event in events),
    "last-empty-line-missing": lambda events: b"data: " + b"\n\ndata: ".join(events) + b"\n",
    "last-line-end-missing": lambda events: b"data: " + b"\n\ndata: ".join(events),
}


@pytest.mark.parametrize("cut", [10_000, 50, 7, 1], ids=["whole", "cut-at-50", "cut-at-7", "cut-at-each-byte"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_the_text_is_the_same_however_it_comes(call, events, is_chat, shape, cut):
    body = SHAPES[shape]([*events, b"[DONE]"] if is_chat else events)
    assert await call(*(body[at : at + cut] for at in range(0, len(body), cut))) == TEXT


async def test_a_mark_within_a_text_is_text(call, is_chat):
    body = b"".join(b"data: %s\n\n" % event.encode() for event in events_of([" one", " \ufeffx"], is_chat))
    assert await call(MARK + body) == " one \ufeffx"


@pytest.mark.parametrize("field", [b" data: ", b"DATA: ", b"Data:", b"data :", b"\tdata:"])
@pytest.mark.parametrize("at", [0, 1, 2], ids=["first", "middle", "last"])
async def test_a_line_that_is_almost_data_is_a_failure_that_says_what_was_seen(call, events, at, field):
    """By the standard it is none: the text was without it, and a success."""
    body = [b"data: %s\n\n" % event for event in events]
    body[at] = body[at].replace(b"data: ", field)
    with pytest.raises(
        UpstreamError, match=r"a field is 'data' but for its case or blanks; it says (?i:data ?: ?\{)"
    ) as failed:
        await call(b"".join(body))
    assert fault_of(failed.value.facts) is Fault.SERVER


@pytest.mark.parametrize("missing", [1, 2, 10])
async def test_an_event_that_is_cut_off_is_no_end(call, events, missing):
    body = SHAPES["last-line-end-missing"](events)
    with pytest.raises(UpstreamError, match="the stream broke off within an event") as failed:
        await call(body[:-missing])
    assert fault_of(failed.value.facts) is Fault.SERVER


@pytest.mark.parametrize("kept", [0, 1])
async def test_a_stream_without_its_last_event_is_no_answer(call, events, kept):
    with pytest.raises(
        UpstreamError, match=r"the stream ended without its end marker|the server's answer is empty"
    ) as failed:
        await call(SHAPES["plain"](events[:kept]))
    assert fault_of(failed.value.facts) is Fault.SERVER


async def test_a_body_that_is_cut_off_between_two_events_is_no_answer(call, server, events):
    server.end = b""
    with pytest.raises(UpstreamError) as failed:
        await call(SHAPES["plain"](events[:2]))
    assert fault_of(failed.value.facts) is Fault.SERVER


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b'event: error\ndata: {"message": "out of memory", "code": 500}\n\n', "out of memory"),
        (b'event: error\ndata: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        (b"event: error\ndata: out of memory\n\n", "out of memory"),
        (b'error: {"code": 500, "message": "out of memory", "type": "server_error"}\n\n', "out of memory"),
    ],
    ids=["no-error-in-it", "error-in-it", "words", "a-field-of-that-name"],
)
async def test_an_event_that_is_called_an_error_is_one(call, events, said, words):
    with pytest.raises(UpstreamError, match=words) as failed:
        await call(b"data: %s\n\n" % events[0] + said)
    assert fault_of(failed.value.facts) is Fault.SERVER


@pytest.mark.parametrize(
    "heartbeat",
    [b"event: ping\ndata: 17:00:00\n\n", b"event: Heartbeat\ndata: 5\n\n", b"event: keep-alive\ndata: {}\n\n"],
)
async def test_an_event_that_is_called_a_heartbeat_says_nothing(call, events, heartbeat):
    assert await call(heartbeat + heartbeat.join(b"data: %s\n\n" % event for event in events)) == TEXT


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        (b"upstream connect error\nor disconnect", "upstream connect error or disconnect"),
        (b": ping\n\n: ping\n\n", ": ping : ping"),
        (b"event: ready\n\nretry: 5\n\n", "event: ready retry: 5"),
    ],
    ids=["words", "comments", "names"],
)
async def test_a_stream_without_any_event_is_shown(call, body, seen):
    with pytest.raises(
        UpstreamError, match=f"it is no event stream \\(text/event-stream\\); it says {seen}$"
    ) as failed:
        await call(body)
    assert fault_of(failed.value.facts) is Fault.SERVER
