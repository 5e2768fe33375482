"""An answer as it comes: its events, or the whole of it, go to the caller before huggingface_hub sees any."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress

import aiohttp
import httpx2
from pydantic_core import from_json, to_json

from genqueue_worker.upstream.errors.answers import Form, foreign_charset, form_of, no_events, unreadable
from genqueue_worker.upstream.faults import UpstreamError, UpstreamFacts
from genqueue_worker.upstream.fields import DONE
from genqueue_worker.upstream.http.event_stream import EventStream, FieldError, StreamTooLongError
from genqueue_worker.upstream.http.exchange import Answered, Exchange, current_exchange

_IDLE_LINES_PER_EVENT = 8
_MORE_IDLE_LINES = 10_000
"""An event may come with a name, an id and comments; a proxy sends one a second while nothing comes."""
_HEARTBEATS = frozenset({b"ping", b"heartbeat", b"keepalive", b"keep-alive", b"keep_alive"})
"""Names of events that say nothing, whatever their data (the time, for one)."""
_STEP_BYTES = 16 * 1024
"""Of one read, which the kernel may make far larger, so much is read before others have their turn."""
_DONE_PATIENCE_S = 0.5


OF_THE_WIRE = (aiohttp.ClientError, OSError)
"""Errors of aiohttp and of what is below it; TimeoutError is an OSError."""


def as_httpx2(error: Exception, request: httpx2.Request | None) -> httpx2.HTTPError:
    """One of them as huggingface_hub knows it."""
    kind: type[httpx2.RequestError]
    match error:
        case aiohttp.ConnectionTimeoutError():
            kind = httpx2.ConnectTimeout
        case TimeoutError():
            kind = httpx2.ReadTimeout
        case aiohttp.ClientConnectorError():
            kind = httpx2.ConnectError
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
            kind = httpx2.RemoteProtocolError
        case _:
            kind = httpx2.ReadError
    return kind(str(error), request=request)


def _passes(words: str) -> UpstreamError:
    """A server that would fill this worker up: its fault, and another one may do better."""
    return UpstreamError(UpstreamFacts(f"the server's {words}", error_type="generation"))


class Body(httpx2.AsyncByteStream):
    """An answer's bytes as they come, no more than may be."""

    def __init__(self, upstream: aiohttp.ClientResponse, most_bytes: int) -> None:
        self.upstream = upstream
        self.beginning = b""
        self._most_bytes = most_bytes

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        size_bytes = 0
        while True:
            try:
                data = await self.upstream.content.readany()
            except OF_THE_WIRE as error:
                raise as_httpx2(error, None) from error
            if not data:
                return
            size_bytes += len(data)
            if size_bytes > self._most_bytes:
                raise _passes(f"answer has more than {self._most_bytes} bytes")
            yield data

    def take_beginning(self) -> bytes:
        """What was read to see what the body is."""
        beginning, self.beginning = self.beginning, b""
        return beginning

    async def aclose(self) -> None:
        """Keep the connection if the body was read to its end, close it if not: the server sees that at once."""
        if self.upstream.content.at_eof():
            self.upstream.release()
        else:
            self.upstream.close()


class Response(httpx2.Response):
    """A response whose events go to the caller first."""

    async def aiter_lines(self) -> AsyncIterator[str]:
        """Give the caller every event of the answer, or the whole of one that is no event stream; yields none.

        The last event may lack its empty line, if it is whole: some servers end so.  One that is not is a
        stream that broke off, however its body was ended.
        """
        exchange, body = current_exchange.get(None), self.extensions.get("genqueue_body")
        if exchange is None or body is None:
            async for plain in super().aiter_lines():
                yield plain
            return
        if not await self._begins_with_events(exchange, body):
            return
        stream = EventStream(
            most_bytes=exchange.most_bytes,
            most_events=exchange.most_events,
            most_lines=_IDLE_LINES_PER_EVENT * exchange.most_events + _MORE_IDLE_LINES,
            on_named=_with_its_name,
        )
        read: Callable[[], Awaitable[bytes]] = body.upstream.content.readany
        is_at_end, beginning = False, body.beginning
        while not is_at_end:
            data = body.take_beginning()
            if not data:
                try:
                    data = await read()
                except OF_THE_WIRE as error:
                    raise as_httpx2(error, self.request) from error
            is_at_end = not data
            for start in range(0, len(data) or 1, _STEP_BYTES):
                if start:
                    await asyncio.sleep(0)  # what else runs here has its turn
                try:
                    events = stream.end() if is_at_end else stream.feed(data[start : start + _STEP_BYTES])
                except StreamTooLongError as error:
                    raise _passes(str(error)) from None
                except FieldError as error:
                    raise UpstreamError(unreadable(str(error), error.line)) from None
                for event in events:
                    if not event or event.isspace():  # a heartbeat
                        continue
                    if is_at_end and not _is_whole(event):
                        raise UpstreamError(
                            UpstreamFacts(
                                "the stream broke off within an event", error_type="incomplete_generation_stream"
                            )
                        )
                    if not exchange.on_data(event):
                        await _read_out(read)
                        return
            await exchange.after_read()
        if not stream.events:
            raise UpstreamError(no_events(Form.TEXT, beginning, self.headers.get("content-type", "")))

    async def aread(self) -> bytes:
        """The whole body, which goes to the caller first if that is what was asked for."""
        data = await super().aread()
        exchange = current_exchange.get(None)
        if exchange is not None and exchange.is_whole:
            kind = self.headers.get("content-type", "")
            exchange.charset = foreign_charset(kind)
            _take_whole(exchange, form_of(data, kind), data, kind)
            raise Answered
        return data

    async def _begins_with_events(self, exchange: Exchange, body: Body) -> bool:
        """Whether the answer is an event stream, of which nothing is read then; any other was read to its end."""
        kind = self.headers.get("content-type", "")
        exchange.charset = foreign_charset(kind)
        beginning, form = bytearray(), None
        async with aclosing(body.__aiter__()) as parts:
            async for data in parts:
                beginning += data
                if form is None and (form := form_of(bytes(beginning), kind)) is None:
                    beginning = bytearray(beginning.lstrip())  # or blank lines without end would be looked at again
                if form is Form.EVENTS:
                    body.beginning = bytes(beginning)
                    return True
        _take_whole(exchange, form, bytes(beginning), kind)
        return False


def _with_its_name(name: bytes, data: bytes) -> bytes:
    """An event that is called an error, as an error's data, and of a heartbeat none; of others the data says enough."""
    if name.lower() in _HEARTBEATS:
        return b""
    if name != b"error":
        return data
    try:
        parsed = from_json(data)
    except ValueError:
        parsed = data.decode("utf-8", "replace")
    return data if isinstance(parsed, dict) and parsed.get("error") is not None else to_json({"error": parsed})


def _is_whole(data: bytes) -> bool:
    if data.strip() == DONE:
        return True
    try:
        from_json(data)
    except ValueError:
        return False
    return True


def _take_whole(exchange: Exchange, form: Form | None, data: bytes, content_type: str) -> None:
    """Have an answer read that came in one piece."""
    if form is None:
        raise UpstreamError(UpstreamFacts("the server's answer is empty", error_type="incomplete_generation_stream"))
    if form is not Form.JSON:
        raise UpstreamError(no_events(form, data, content_type))
    exchange.on_whole(data)


async def _read_out(read: Callable[[], Awaitable[bytes]]) -> None:
    """Wait for the end of a body that has said its last word.

    huggingface_hub would leave a chat at ``[DONE]``, but only a body that was read to its end
    leaves its connection to the next call.  Most often the end is there already.
    """
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_DONE_PATIENCE_S):
            while await read():
                pass
