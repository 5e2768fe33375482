"""A model server that hardly takes part: for the benchmark, which shares its cores.

``python -m genqueue_lab.bench.standin`` listens on 127.0.0.1 and serves TGI's native stream and its chat
stream, of texts as ``wire.py`` has them, with a fixed pace.  One timer serves all streams that
are due, and a token costs one formatting and one write.  It judges no request and speaks no more HTTP than its
clients need; ``genqueue tgi-standin`` does that.
"""

import argparse
import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from genqueue.cli import output
from genqueue_lab.bench.wire import INSTANT, LAST_CHUNK, Route, Templates, http_chunk, token_text

_NATIVE = Templates(Route(is_chat=False))
_CHAT = Templates(Route(is_chat=True))
_ROUTES = {"/": _NATIVE, "/generate_stream": _NATIVE, "/v1/chat/completions": _CHAT, "/chat/completions": _CHAT}
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_DEFAULT_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for a stream."""

    tokens: int
    is_instant: bool
    with_usage: bool


def read_request(body: bytes, *, is_chat: bool) -> Asked:
    """Read the JSON of a request for a stream.

    Raises:
        ValueError: it is none.
    """
    try:
        request = json.loads(body)
        if is_chat:
            prompt, parameters = request["messages"][-1]["content"], request
        else:
            prompt, parameters = request["inputs"], request.get("parameters") or {}
        tokens = parameters.get("max_tokens" if is_chat else "max_new_tokens") or _DEFAULT_TOKENS
        with_usage = bool((parameters.get("stream_options") or {}).get("include_usage"))
        if not request.get("stream") or not isinstance(tokens, int) or tokens < 1:
            raise ValueError("only streams of at least one token are served here")
        return Asked(tokens, prompt.startswith(INSTANT), with_usage)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"no request for a stream: {error!r}") from error


class Transport(Protocol):
    """The part of asyncio's transports that is used here; uvloop's are none by their class."""

    def write(self, data: bytes) -> None:
        """Send it, now or when the client reads again."""

    def is_closing(self) -> bool:
        """Whether the client has gone."""


class Timer(Protocol):
    """The part of an event loop that is used here."""

    def time(self) -> float:
        """Its clock."""

    def call_at(self, when: float, callback: Callable[[], None]) -> object:
        """Call when its clock says so."""


@dataclass(slots=True, eq=False)
class Stream:
    """One answer that is being written."""

    transport: Transport
    templates: Templates
    asked: Asked
    due_ms: int
    clocks_us: list[int] = field(default_factory=list)

    def write_next(self, clock_us: int) -> bool:
        """Write the next token; False if it was the last one."""
        index = len(self.clocks_us)
        self.clocks_us.append(clock_us)
        if index + 1 < self.asked.tokens:
            self.transport.write(self.templates.up_to(index + 1)[index] % clock_us)
            return True
        self.transport.write(self._ending(index))
        return False

    def write_all(self, clock_us: int) -> None:
        """Write every token at once."""
        index = self.asked.tokens - 1
        self.clocks_us = [clock_us] * self.asked.tokens
        begun = [template % clock_us for template in self.templates.up_to(index)[:index]]
        self.transport.write(b"".join([*begun, self._ending(index)]))

    def _ending(self, index: int) -> bytes:
        texts = [token_text(number, clock_us) for number, clock_us in enumerate(self.clocks_us)]
        ending = self.templates.route.last(index, texts[-1], "".join(texts), with_usage=self.asked.with_usage)
        return http_chunk(ending) + LAST_CHUNK


class Pace:
    """Writes the tokens of all streams when they are due.

    Args:
        first_ms: from a request to its first token.
        between_ms: from token to token.
        timer: says when it is, and calls when it is time.
        clock_us: the monotonic clock that goes into the tokens.

    Both times are fixed, so two queues hold the streams in the order in which they are due.  They are due at whole
    milliseconds, like uvloop's timers and clock: for a part of one the loop would turn until it has passed.

    Raises:
        ValueError: a first token would come sooner than a next one; the one timer would be late for it.
    """

    def __init__(self, first_ms: int, between_ms: int, timer: Timer, clock_us: Callable[[], int]) -> None:
        if first_ms < between_ms:
            raise ValueError(f"first_ms {first_ms} is less than between_ms {between_ms}")
        self._timer = timer
        self._clock_us = clock_us
        self._first_ms = first_ms
        self._between_ms = between_ms
        self._beginning: deque[Stream] = deque()
        self._running: deque[Stream] = deque()
        self._is_waiting = False

    def begin(self, transport: Transport, templates: Templates, asked: Asked) -> None:
        """Answer a request."""
        transport.write(_STREAM_HEAD)
        stream = Stream(transport, templates, asked, self._now_ms() + self._first_ms)
        if asked.is_instant:
            stream.write_all(self._clock_us())
            return
        self._beginning.append(stream)
        if not self._is_waiting:
            self._wait_until(stream.due_ms)

    def _now_ms(self) -> int:
        return round(self._timer.time() * 1000)

    def _wait_until(self, due_ms: int) -> None:
        self._is_waiting = True
        self._timer.call_at(due_ms / 1000, self._write_due)

    def _write_due(self) -> None:
        beginning, running = self._beginning, self._running
        self._is_waiting = False
        while beginning or running:
            queue = running
            if not running or (beginning and beginning[0].due_ms < running[0].due_ms):
                queue = beginning
            if queue[0].due_ms > self._now_ms():
                self._wait_until(queue[0].due_ms)
                return
            stream = queue.popleft()
            if not stream.transport.is_closing() and stream.write_next(self._clock_us()):
                stream.due_ms += self._between_ms
                running.append(stream)


class Connection(asyncio.Protocol):
    """One connection of a client, with one request after the other."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._received = bytearray()
        self._transport: Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        self._transport = cast(Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            method, path, size_bytes = read_head(bytes(self._received[:end]))
            if len(self._received) < end + 4 + size_bytes:
                return
            body = bytes(self._received[end + 4 : end + 4 + size_bytes])
            del self._received[: end + 4 + size_bytes]
            self._answer(method, path, body)

    def _answer(self, method: str, path: str, body: bytes) -> None:
        if method == "GET":
            self._write_json(200 if path in {"/health", "/info"} else 404, {"model_id": "bench"})
            return
        templates = _ROUTES.get(path)
        if templates is None:
            self._write_json(404, {"error": f"no route {path}", "error_type": "validation"})
            return
        try:
            asked = read_request(body, is_chat=templates.route.is_chat)
        except ValueError as error:
            self._write_json(422, {"error": str(error), "error_type": "validation"})
            return
        self._pace.begin(self._transport, templates, asked)

    def _write_json(self, status: int, value: dict[str, str]) -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def read_head(head: bytes) -> tuple[str, str, int]:
    """Of a request's head: method, path and the size of its body in bytes, which must have a Content-Length."""
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    sizes = [line.partition(":")[2] for line in lines if line.lower().startswith("content-length:")]
    return method, path, int(sizes[0]) if sizes else 0


async def _serve(first_ms: int, between_ms: int) -> None:
    loop = asyncio.get_running_loop()
    pace = Pace(first_ms, between_ms, loop, lambda: time.monotonic_ns() // 1000)
    server = await loop.create_server(lambda: Connection(pace), "127.0.0.1", 0, backlog=4096)
    output.line(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await server.serve_forever()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-ms", type=int, default=50, help="from a request to its first token")
    parser.add_argument("--between-ms", type=int, default=20, help="from token to token")
    options = parser.parse_args(arguments)
    try:
        import uvloop
    except ImportError:  # Windows; the benchmark says what the stand-in took
        asyncio.run(_serve(options.first_ms, options.between_ms))
    else:
        uvloop.run(_serve(options.first_ms, options.between_ms))


if __name__ == "__main__":
    main()
