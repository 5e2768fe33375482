"""Model servers that answer with anything, slowly or for ever: each call ends, within its bounds, and harms no other.

First one call at a time, through the worker's own transport; then a real worker, of which one generator is at such
a server and another at a good one.
"""

import asyncio
import gzip
import json
import random
import re
import threading
import time
import urllib.request
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import redis

from genqueue import AsyncGenerationClient, GenerationClient, GenerationError, GenerationFailedError, Settings
from genqueue.registry.attempts import Claim
from genqueue.settings import GeneratorSettings
from genqueue.wire.request import read_request
from genqueue_ops.standin.server import stop_accepting
from genqueue_worker.engine.outbox import Outbox
from genqueue_worker.observe.health import turns
from genqueue_worker.observe.metrics import AttemptMeter, Metrics
from genqueue_worker.upstream.client import ModelClient
from genqueue_worker.upstream.faults import Fault, UpstreamError, fault_of
from genqueue_worker.upstream.pool import EndpointPool
from genqueue_worker.upstream.sink import ReplyTooLongError
from genqueue_worker.upstream.transport import open_transport

from ...support.hostile import answers, drawn
from ...support.roles import as_role, guarded_redis

TGI = "text_generation_inference"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
QUIET = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
MANY = 64 * 1024
MOST_GROWTH_KB = 60_000


def resident_kb(pid="self") -> int:
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])


async def read_call(reader):
    """The method of one call, its body read; "" when there is none any more."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    await reader.readexactly(int(found[1]) if found else 0)
    return head.split(b" ")[0]


class Server:
    """Says what it is told to, over a connection of its own each: ``head``, then ``piece`` for ever."""

    def __init__(self) -> None:
        self.head = STREAM
        self.piece = b""
        self.gap_s = 0.0
        self.sent_bytes = 0

    async def serve(self, reader, writer):
        try:
            if await read_call(reader) == b"GET":
                writer.write(QUIET)
                return
            writer.write(self.head)
            while self.piece:
                writer.write(self.piece)
                await writer.drain()
                self.sent_bytes += len(self.piece)
                await asyncio.sleep(self.gap_s)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(serve):
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"http://{host}:{port}"
    await stop_accepting(server)
    server.close()


class NoWriter:
    """What an outbox tells its writer."""

    now_s = staticmethod(time.monotonic)

    def wake(self, outbox) -> None:
        outbox.is_congested = False

    def drop(self, outbox) -> None:
        pass


@pytest.fixture
async def server():
    return Server()


@pytest.fixture
async def call(server):
    """``await call(chat=…, silence_s=…, **generation_kwargs)``: the outbox; limits of 1 MB of reply."""
    transport = open_transport()

    async with listening(lambda reader, writer: server.serve(reader, writer)) as url:

        async def run(chat=False, most_reply_bytes=1_000_000, silence_s=10.0, **kwargs):
            settings = GeneratorSettings.model_validate(
                {
                    "api_type": TGI,
                    "api_params": {"url": url},
                    "timeouts": {"first_token_s": silence_s, "between_tokens_s": silence_s},
                }
            )
            metrics = Metrics({"g": settings})
            generator = ModelClient(EndpointPool("g", settings, {}, lambda: None), metrics.of("g"), 1_000_000)
            fields = {"messages": [{"role": "user", "content": "hi"}]} if chat else {"prompt": "hi"}
            request = read_request({**fields, "generation_kwargs": kwargs})
            meter = AttemptMeter(metrics.of("g"), Claim(1, b"", 0.0, 0.0, None, "", 0, 0, []), keeps=True)
            outbox = Outbox(NoWriter(), "id", 1, publish=True, max_reply_bytes=most_reply_bytes, meter=meter)
            before_kb = resident_kb()
            try:
                async with asyncio.timeout(30):
                    ending = await generator.run(request.given, generator.parameters(request), outbox)
            finally:
                assert resident_kb() - before_kb < MOST_GROWTH_KB
            return ending, outbox

        yield run
        await transport.close()


def native(text="", **token):
    said = {"id": 1, "text": text, "logprob": 0.0, "special": False, **token}
    return b"data: " + json.dumps({"token": said, "generated_text": None, "details": None}).encode() + b"\n\n"


def chatted(logprobs=None, **delta):
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


EMPTY_COMPLETION = b'data: {"choices":[{"index":0,"text":"","finish_reason":null}]}\n\n'
OUTPUT = b'data: {"choices":[{"delta":{}}]}\n\n'


# --- a line, and events, without end -------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True], ids=["prompt", "chat"])
async def test_a_line_without_end_is_cut_off(server, call, chat):
    """Its parts look like events, but none is one before its end."""
    server.piece = b" data: " + b"x" * MANY
    with pytest.raises(UpstreamError, match="the server's event has more than 2000000 bytes") as failed:
        await call(chat)
    assert fault_of(failed.value.facts) is Fault.SERVER
    assert server.sent_bytes < 10_000_000


async def test_a_line_that_comes_slowly_is_no_token(server, call):
    server.piece, server.gap_s = b"data: ", 0.05
    with pytest.raises(UpstreamError, match=r"no token within 0.5 s"):
        await call(silence_s=0.5)


async def test_a_long_line_takes_time_in_proportion_to_its_length(server, call):
    """And is an event when it is over, if it is not too long."""
    text = "a" * 900_000
    event = b"data: " + json.dumps({"token": None, "generated_text": text, "details": None}).encode() + b"\n\n"
    parts = [event[start : start + 500] for start in range(0, len(event), 500)]

    async def slowly(reader, writer):
        if await read_call(reader) == b"GET":
            writer.write(QUIET)
        else:
            writer.write(STREAM)
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
        writer.close()

    server.serve, began_s = slowly, time.process_time()
    ending, _ = await call()
    assert ending.generated_text == text
    assert time.process_time() - began_s < 3


@pytest.mark.parametrize("gap_s", [0.0, 0.05], ids=["fast", "slow"])
@pytest.mark.parametrize(
    ("chat", "piece"),
    [
        pytest.param(True, OUTPUT, id="no-delta"),
        pytest.param(True, chatted(role="assistant", content=""), id="role"),
        pytest.param(True, chatted(content=None, pondering="unknown"), id="unknown-field"),
        pytest.param(True, b'data: {"choices":[],"usage":null}\n\n', id="no-choice"),
        pytest.param(True, b": keep-alive data:\n\n", id="comment"),
        pytest.param(False, b": keep-alive data:\n\n", id="native-comment"),
        pytest.param(False, b"event: data:\n\n", id="other-field"),
    ],
)
async def test_events_that_bring_nothing_are_silence(server, call, chat, piece, gap_s):
    server.piece, server.gap_s = piece * (1 if gap_s else 100), gap_s
    words = r"no token within 0.5 s|the server's answer has more than (1010 events|18080 lines without data)"
    with pytest.raises(UpstreamError, match=words) as failed:
        await call(chat, silence_s=0.5, **{"max_tokens" if chat else "max_new_tokens": 5})
    assert fault_of(failed.value.facts) is Fault.SERVER


@pytest.mark.parametrize(
    ("chat", "piece"),
    [
        pytest.param(False, native(""), id="half-a-character"),
        pytest.param(False, native("</s>", special=True), id="special"),
        pytest.param(False, native("a"), id="text"),
        pytest.param(True, chatted(content="a"), id="chat"),
        pytest.param(True, chatted(reasoning="a"), id="thoughts"),
    ],
)
async def test_more_tokens_than_were_asked_for_are_cut_off(server, call, chat, piece):
    server.piece = piece
    with pytest.raises(UpstreamError, match="the server's answer has more than 1010 events") as failed:
        await call(chat, **{"max_tokens" if chat else "max_new_tokens": 5})
    assert fault_of(failed.value.facts) is Fault.SERVER


async def test_empty_tokens_are_progress(server, call):
    """A character may take several."""
    end = b'data: {"token":{"id":2,"text":"!","logprob":0,"special":false},"generated_text":"!","details":null}\n\n'

    async def slowly(reader, writer):
        if await read_call(reader) == b"GET":
            writer.write(QUIET)
        else:
            writer.write(STREAM)
            for _ in range(6):
                writer.write(native(""))
                await asyncio.sleep(0.2)
            writer.write(end)
        writer.close()

    server.serve = slowly
    _, outbox = await call(silence_s=1.0, max_new_tokens=7)  # 1.2 s in all
    assert ("".join(outbox.parts), outbox.completion_tokens) == ("!", 7)


async def test_of_what_is_no_http_no_more_is_told_than_a_few_words(server, call):
    server.head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    server.piece = b"no size of a chunk " * 500
    with pytest.raises(UpstreamError, match="the way to the server failed") as failed:
        await call()
    assert len(failed.value.facts.message) < 600


# --- bodies that are no streams --------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 422, 429, 500, 503])
async def test_no_more_of_an_errors_body_is_read_than_its_words_may_take(server, call, status):
    server.head = b"HTTP/1.1 %d No\r\n\r\n" % status
    server.piece = b"no " * MANY
    with pytest.raises(UpstreamError) as failed:
        await call()
    assert failed.value.facts.status == status
    assert failed.value.facts.message.startswith("no no")
    assert len(failed.value.facts.message) == 2000
    assert server.sent_bytes < 10_000_000


async def test_an_errors_body_that_does_not_end_is_silence(server, call):
    server.head, server.piece, server.gap_s = b"HTTP/1.1 500 No\r\n\r\n", b"no ", 0.1
    with pytest.raises(UpstreamError, match=r"no token within 0.5 s"):
        await call(silence_s=0.5)


async def test_a_redirects_body_is_not_read(server, call):
    server.head, server.piece = b"HTTP/1.1 307 There\r\nlocation: /there\r\n\r\n", b"x" * MANY
    with pytest.raises(UpstreamError, match="HTTP 307"):
        await call()
    assert server.sent_bytes < 10_000_000


async def test_an_answer_in_one_piece_is_cut_off(server, call):
    server.head, server.piece = JSON, b" " * MANY
    with pytest.raises(UpstreamError, match="the server's answer has more than 2000000 bytes") as failed:
        await call(best_of=2, do_sample=True)
    assert fault_of(failed.value.facts) is Fault.SERVER
    assert server.sent_bytes < 10_000_000


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip", "br", "x"])
@pytest.mark.parametrize("kwargs", [{}, {"best_of": 2, "do_sample": True}], ids=["stream", "one-shot"])
async def test_packed_answers_are_refused_unread(server, call, coding, kwargs):
    """They are not asked for, and a small one may be any size unpacked."""
    bomb = gzip.compress(b"data: {}\n\n" * 10_000_000)
    server.head = STREAM[:-2] + f"content-encoding: {coding}\r\n\r\n".encode() + bomb
    with pytest.raises(UpstreamError, match="the server's answer is packed") as failed:
        await call(**kwargs)
    assert fault_of(failed.value.facts) is Fault.SERVER
    server.head = server.head.replace(b"200 OK", b"500 No")
    with pytest.raises(UpstreamError, match="HTTP 500 No"):
        await call(**kwargs)


@pytest.mark.parametrize("coding", [b"identity", b"Identity", b"identity, identity", b""])
async def test_an_answer_may_say_that_it_is_not_packed(server, call, coding):
    end = b'data: {"token":null,"generated_text":"a","details":null}\n\n'
    server.head = STREAM[:-2] + b"content-encoding: " + coding + b"\r\n\r\n" + end
    ending, _ = await call()
    assert ending.generated_text == "a"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(b"x-a: b\r\n" * 1000, id="many"),
        pytest.param(b"x-long: " + b"y" * 100_000 + b"\r\n", id="long"),
    ],
)
async def test_headers_have_their_bounds(server, call, headers):
    server.head = STREAM[:-2] + headers + b"\r\n"
    with pytest.raises(UpstreamError) as failed:
        await call()
    assert fault_of(failed.value.facts) is Fault.SERVER
    assert len(str(failed.value)) < 1000


async def test_headers_without_end_are_silence(server, call):
    server.head, server.piece, server.gap_s = STREAM[:-2], b"x-a: b\r\n", 0.05
    with pytest.raises(UpstreamError, match=r"no token within 0.5 s"):
        await call(silence_s=0.5)


@pytest.mark.parametrize("gap_s", [0.0, 0.01], ids=["fast", "slow"])
@pytest.mark.parametrize("status", [100, 102, 103])
async def test_answers_before_the_answer_have_their_bound(server, call, status, gap_s):
    server.head, server.piece, server.gap_s = b"", b"HTTP/1.1 %d Wait\r\nlink: a\r\n\r\n" % status, gap_s
    if not gap_s:
        server.piece *= 100
    with pytest.raises(UpstreamError, match="the server sends more than 32 interim answers") as failed:
        await call()
    assert fault_of(failed.value.facts) is Fault.SERVER
    assert server.sent_bytes < 10_000_000


@pytest.mark.parametrize("count", [1, 32])
async def test_a_few_answers_before_the_answer_are_read_over(server, call, count):
    end = b'data: {"token":null,"generated_text":"a","details":null}\n\n'
    server.head = b"HTTP/1.1 102 Processing\r\n\r\n" * count + STREAM + end
    ending, _ = await call()
    assert ending.generated_text == "a"


async def test_answers_that_are_slow_to_come_are_silence(server, call):
    server.head, server.piece, server.gap_s = b"", b"HTTP/1.1 102 Processing\r\n\r\n", 0.1
    with pytest.raises(UpstreamError, match=r"no token within 0.5 s"):
        await call(silence_s=0.5)


CHUNKED = STREAM[:-2] + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        pytest.param(b"", b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" * 100, id="interim-answers"),
        pytest.param(STREAM[:-2], b"x: " + b"y" * 8000 + b"\r\n", id="headers"),
        pytest.param(b"", b"x" * MANY, id="no-http"),
        pytest.param(b"", b"\r\n" * 10_000, id="empty-lines-before-the-answer"),
        pytest.param(CHUNKED + b"5;", b"x" * MANY, id="extension-of-a-chunk"),
        pytest.param(CHUNKED, b"1;" + b"x" * 1000 + b"\r\n:\r\n", id="extensions-of-chunks"),
        pytest.param(CHUNKED, b"1\r\n:\r\n" * 10_000, id="chunks-of-a-byte"),
        pytest.param(CHUNKED + b"0\r\n", b"x: y\r\n" * 1000, id="trailers"),
        pytest.param(STREAM, b":" * MANY, id="a-comment-without-end"),
        pytest.param(STREAM, b":\n" * MANY, id="comments"),
        pytest.param(STREAM, b"\n" * MANY, id="empty-lines"),
        pytest.param(STREAM, b"\r" * MANY, id="empty-lines-of-cr"),
        pytest.param(STREAM, b"data\n" * MANY, id="data-lines-of-one-event"),
        pytest.param(STREAM, b"data:\n\n" * MANY, id="empty-events"),
        pytest.param(STREAM, b"id: 1\nretry: 5\n" * MANY, id="other-fields"),
        pytest.param(STREAM, EMPTY_COMPLETION * 500, id="events-of-another-route"),
        pytest.param(STREAM, native("a") * 500, id="tokens"),
    ],
)
async def test_no_flood_keeps_others_from_their_turn(server, call, head, piece):
    """Whatever it is of: it ends by a bound, or by its silence, and others' work goes on beside it."""
    server.head, server.piece = head, piece
    longest_s, is_over = 0.0, False

    async def others():
        nonlocal longest_s
        while not is_over:
            began_s = time.thread_time()  # not what other processes take of the cores
            await turns()
            longest_s = max(longest_s, time.thread_time() - began_s)
            await asyncio.sleep(0.001)

    beside = asyncio.create_task(others())
    try:
        with pytest.raises(UpstreamError) as failed:
            await call(silence_s=2.0)
    finally:
        is_over = True
        await beside
    assert fault_of(failed.value.facts) is Fault.SERVER
    assert longest_s < 1.5
    assert server.sent_bytes < 20_000_000


# --- what is kept of an answer ---------------------------------------------------------------------

LONG = "y" * 400
TOP = json.dumps({"id": 1, "text": LONG, "logprob": 0.0, "special": False}).encode()
NAMED = {"index": 0, "id": "i" * 200, "function": {"name": "n" * 200}}


@pytest.mark.parametrize(
    ("chat", "piece"),
    [
        pytest.param(True, chatted(content="a" * 400), id="text"),
        pytest.param(True, chatted(reasoning_content=LONG), id="thoughts"),
        pytest.param(True, chatted(tool_calls=[{"index": 0, "function": {"arguments": LONG}}]), id="arguments"),
        pytest.param(True, chatted(tool_calls=[NAMED]), id="names"),
        pytest.param(True, chatted(tool_calls=[{"index": 0}] * 20), id="empty-pieces"),
        pytest.param(True, chatted({"content": [{"token": LONG, "logprob": 0.0}]}, content="a"), id="logprobs"),
        pytest.param(True, chatted({"content": [{"token": LONG, "logprob": 0.0}]}), id="logprobs-alone"),
        pytest.param(False, native(LONG), id="native-text"),
        pytest.param(False, native(LONG, special=True), id="special-token"),
        pytest.param(False, native("a")[:-3] + b',"top_tokens":[' + TOP + b"]}\n\n", id="alternatives"),
    ],
)
async def test_all_that_is_kept_counts_against_the_bound(server, call, chat, piece):
    server.piece = piece
    with pytest.raises(ReplyTooLongError, match="reply: has more than 50000 bytes, which is max_reply_bytes"):
        await call(chat, most_reply_bytes=50_000)
    assert server.sent_bytes < 10_000_000


NATIVE_END = {"token": None, "generated_text": "ab", "details": {"finish_reason": "length"}}
CHAT_END = {"choices": [{"delta": {"content": "b"}, "finish_reason": "length"}]}
CALLED = {"index": 10**30, "id": "c", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("chat", "event", "text"),
    [
        pytest.param(False, {"token": {"id": "1", "text": "a", "special": False}}, "a", id="id"),
        pytest.param(False, {"token": {"id": 10**30, "text": "a", "special": False}}, "a", id="large-id"),
        pytest.param(False, {"token": {"id": 1, "text": "a", "logprob": "x", "special": False}}, "a", id="logprob"),
        pytest.param(True, {"choices": [{"delta": {"content": ["a"]}}]}, "ab", id="content"),
        pytest.param(True, {"choices": [{"delta": {"content": "a", "reasoning": 5}}]}, "ab", id="reasoning"),
        pytest.param(True, {"choices": [{"delta": {"content": "a", "tool_calls": [CALLED]}}]}, "ab", id="index"),
        pytest.param(True, {"choices": [{"delta": {"content": "a", "tool_calls": "x"}}]}, "ab", id="tool-calls"),
        pytest.param(
            True,
            {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [{"token": 1, "logprob": 0}]}}]},
            "ab",
            id="logprobs",
        ),
    ],
)
async def test_what_is_not_of_its_type_costs_no_text(server, call, chat, event, text):
    """It is left out, or read for what it says: the text beside and behind it is there, and so is the end."""
    end = CHAT_END if chat else NATIVE_END
    server.head = STREAM + b"".join(b"data: " + json.dumps(said).encode() + b"\n\n" for said in (event, end))
    ending, outbox = await call(chat)
    assert ("".join(outbox.parts), ending.finish_reason) == (text, "length")


@pytest.mark.parametrize(
    ("chat", "event"),
    [
        pytest.param(False, {"token": {"id": 1, "text": 5, "special": False}}, id="text"),
        pytest.param(False, {"token": None, "generated_text": ["a"]}, id="generated-text"),
        pytest.param(False, {"token": 5, "generated_text": None}, id="token"),
        pytest.param(False, 5, id="number"),
        pytest.param(True, {"choices": [{"delta": {"content": 5}}]}, id="content"),
        pytest.param(True, {"choices": [{"delta": {"tool_calls": ["f"]}}]}, id="tool-calls"),
    ],
)
async def test_what_may_be_text_or_a_call_and_is_not_of_its_type_is_no_answer(server, call, chat, event):
    """No reader could read it."""
    server.head = STREAM + b"data: " + json.dumps(event).encode() + b"\n\n"
    with pytest.raises(UpstreamError, match="the server's answer is none of TGI's") as failed:
        await call(chat)
    assert fault_of(failed.value.facts) is Fault.SERVER


@pytest.mark.parametrize("said", [b"[" * 100_000, b"9" * 5000, b'{"error":' + b"[" * 300 + b"]" * 300 + b"}"])
async def test_what_python_cannot_read_is_the_servers_fault(server, call, said):
    server.head = STREAM + b"data: " + said + b"\n\n"
    with pytest.raises(UpstreamError) as failed:
        await call()
    assert fault_of(failed.value.facts) is Fault.SERVER
    assert len(str(failed.value)) <= 2000


async def test_figures_that_are_none_are_left_out(server, call):
    details = {"finish_reason": {}, "generated_tokens": "two", "seed": -1, "input_length": 10**30}
    end = {"token": None, "generated_text": "a", "details": details}
    server.head = STREAM + b"data: " + json.dumps(end).encode() + b"\n\n"
    ending, _ = await call()
    assert (ending.finish_reason, ending.prompt_tokens, ending.completion_tokens, ending.extra) == (
        None,
        None,
        None,
        {},
    )


@pytest.mark.parametrize("word", ["error", "abort"])
async def test_a_text_that_its_server_gave_up_is_no_answer(server, call, word):
    end = {"token": None, "generated_text": "a", "details": {"finish_reason": word}}
    server.head = STREAM + native("a") + b"data: " + json.dumps(end).encode() + b"\n\n"
    with pytest.raises(UpstreamError, match=f"the server ended its answer with '{word}'") as failed:
        await call()
    assert fault_of(failed.value.facts) is Fault.SERVER


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"301 Moved\r\n", "HTTP 301: a redirect without an address"),
        (b"304 Not Modified\r\n", "HTTP 304: a redirect without an address"),
        (b"302 Found\r\nlocation:\r\n", "HTTP 302: a redirect without an address"),
        (b"302 Found\r\nlocation: http://[::1\r\n", "HTTP 302: a redirect whose address cannot be read"),
    ],
)
@pytest.mark.parametrize("chat", [False, True], ids=["prompt", "chat"])
async def test_a_redirect_to_nowhere_says_so_and_is_the_addresss_fault(server, call, chat, head, words):
    server.head = b"HTTP/1.1 " + head + b"content-length: 0\r\n\r\n"
    with pytest.raises(UpstreamError) as failed:
        await call(chat)
    assert (failed.value.facts.message, fault_of(failed.value.facts)) == (words, Fault.ENDPOINT)


async def test_numbers_that_are_none_are_not_passed_on(server, call):
    end = b'data: {"token":null,"generated_text":"a","details":null}\n\n'
    server.head = STREAM + native("a", logprob=float("nan")) + native("", logprob=float("-inf")) + end
    _, outbox = await call()
    (body,) = outbox.take().bodies
    assert b"NaN" not in body and b"Infinity" not in body


# --- a real worker -----------------------------------------------------------------------------------

STREAMS, BATCH = 400, 50
OPTIONS = [
    {"max_new_tokens": 20},
    {"max_tokens": 20},
    {"max_new_tokens": 20},
    {"max_tokens": 20, "logprobs": True},
    {"max_new_tokens": 20, "best_of": 2, "do_sample": True},
]
"""Three kinds of call: a stream of tokens, a chat, an answer in one piece."""


@pytest.mark.timeout(120)
async def test_servers_that_send_without_end_keep_a_worker_from_nothing(start_worker, queue_redis, standin, ask):
    """Their calls end in words, others' are as quick as ever, and ``/livez`` says that all is well since it is."""
    floods = {
        "interim": ("more than 32 interim answers", b"", b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" * 100, 0.0),
        "slow-interim": ("more than 32 interim answers", b"", b"HTTP/1.1 102 Wait\r\n\r\n", 0.01),
        "extensions": ("more beside its answer", CHUNKED, b"1;" + b"x" * 1000 + b"\r\n:\r\n", 0.0),
        "comments": ("lines without data", STREAM, b":\n" * 10_000, 0.0),
    }
    url = queue_redis.url.removesuffix("/0") + "/6"
    async with AsyncExitStack() as stack:
        generators = {"default": {"api_type": TGI, "api_params": {"url": standin.url}}}
        for name, (_, head, piece, gap_s) in floods.items():
            flood = Server()
            flood.head, flood.piece, flood.gap_s = head, piece, gap_s
            api_params = {"url": await stack.enter_async_context(listening(flood.serve))}
            generators[name] = {"api_type": TGI, "api_params": api_params, "max_attempts": 2}
        environ = {"GENQUEUE_MONITOR_PORT": "0"}
        worker = start_worker(generators, url, "-c", "32", environ=environ, wait=False)
        await asyncio.to_thread(worker.wait_until_ready)
        livez = re.search(r"(http://127\.0\.0\.1:\d+)/livez", worker.log)[0]
        client = await stack.enter_async_context(
            AsyncGenerationClient(Settings(redis_url=as_role(url, "producer"), generators={}))
        )
        bad = {name: [await client.submit("hi", generator=name) for _ in range(4)] for name in floods}
        for _ in range(12):
            prompt, began_s = ask(tokens=10, itl_s=0.02), time.monotonic()
            assert (await (await client.submit(prompt)).result(timeout_s=20)).replies == [prompt.answer]
            assert time.monotonic() - began_s < 5
            with await asyncio.to_thread(urllib.request.urlopen, livez, timeout=10) as answer:
                assert answer.status == 200
        for name, generations in bad.items():
            for generation in generations:
                with pytest.raises(GenerationFailedError, match=f"gave up after 2 attempts: .*{floods[name][0]}"):
                    await generation.result(timeout_s=40)
    assert worker.end() == 0
    assert "Traceback" not in worker.log


class Fuzz:
    """Gives each call the next answer, in pieces, and then closes, resets, falls silent or goes on for ever."""

    def __init__(self, said):
        self.said, self.given = said, 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    async def _run(self):
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        async with listening(self._serve) as self.url:
            self._ready.set()
            await self._stopped.wait()

    def stop(self):
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    async def _serve(self, reader, writer):
        try:
            if await read_call(reader) == b"GET":
                writer.write(QUIET)
                return
            number, self.given = self.given, self.given + 1
            dice = random.Random(number)
            answer = self.said[number % len(self.said)]
            size = max(dice.choice([1, 7, 100, 5000, 1_000_000]), len(answer) // 200)
            for start in range(0, len(answer), size):
                writer.write(answer[start : start + size])
                await writer.drain()
                await asyncio.sleep(0)
            match dice.choice(["close", "close", "close", "reset", "silent", "on"]):
                case "reset":
                    writer.transport.abort()
                case "silent":
                    await reader.read()
                case "on":
                    while True:
                        writer.write(answer[-dice.choice([10, 200, 5000]) :] or b"x")
                        await writer.drain()
                        await asyncio.sleep(0.001)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()


@pytest.fixture(scope="module")
def fuzz():
    server = Fuzz(drawn(answers(), STREAMS))
    yield server
    server.stop()


@pytest.mark.timeout(240)
def test_a_worker_outlives_a_hostile_server_and_serves_others_meanwhile(
    fuzz, launch_worker, standin, ask, real_redis, tmp_path_factory, eventually
):
    hostile = {
        "api_type": TGI,
        "api_params": {"url": fuzz.url},
        "max_attempts": 2,
        "timeouts": {"first_token_s": 0.5, "between_tokens_s": 0.5},
    }
    generators = {"default": {"api_type": TGI, "api_params": {"url": standin.url}}, "hostile": hostile}
    with guarded_redis(tmp_path_factory.mktemp("hostile-server-redis")) as own:
        process = launch_worker(
            generators, own.url, "-c", "32", environ={"GENQUEUE_MAX_REPLY_BYTES": "200000", "GENQUEUE_LEASE_S": "10"}
        )
        settings = Settings(redis_url=as_role(own.url, "producer"), generators={})
        with GenerationClient(settings) as client, redis.Redis.from_url(own.url) as db:
            warm = ask(tokens=3)
            assert client.submit(warm).result(timeout_s=10).replies == [warm.answer]
            before_kb, ended, good = resident_kb(process.process.pid), [], 0
            for start in range(0, STREAMS, BATCH):
                asked = []
                for number in range(start, start + BATCH):
                    options, fields = OPTIONS[number % len(OPTIONS)], {"generator": "hostile", "deadline_s": 4.0}
                    if "max_tokens" in options:
                        messages = [{"role": "user", "content": "hi"}]
                        asked.append(client.submit_chat(messages, generation_kwargs=options, **fields))
                    else:
                        asked.append(client.submit("hi", generation_kwargs=options, **fields))
                prompts = [ask(tokens=10, itl_s=0.02) for _ in range(5)]
                for prompt in prompts:
                    generation = client.submit(prompt, priority=9)
                    assert "".join(chunk.text for chunk in generation.stream()) == prompt.answer
                    good += 1
                for generation in asked:
                    try:
                        text = "".join(chunk.text for chunk in generation.stream())
                        ended.append(generation.result(timeout_s=30))
                        assert ended[-1].replies == [text]
                    except GenerationError as error:
                        assert len(str(error)) < 3000
                        ended.append(type(error).__name__)
                assert process.process.poll() is None, process.log[-3000:]
            assert db.zcard("genqueue:generator:hostile:running") == 0
            assert len(ended) == STREAMS
            assert good == STREAMS // 10
            assert resident_kb(process.process.pid) - before_kb < 200_000
            assert "unexpected" not in process.log
            assert "Traceback" not in process.log, process.log[process.log.index("Traceback") - 500 :][:3000]
            kinds = {each if isinstance(each, str) else "finished" for each in ended}
            assert {"finished", "GenerationFailedError", "GenerationRejectedError"} <= kinds
        assert process.end() == 0, process.log[-3000:]
