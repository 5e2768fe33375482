"""The configured HTTP transport that every generation of a worker shares.

``huggingface_hub`` makes an HTTP client of its own for each client object and keeps every
streamed response until that is closed: 10 KB a call on a client that lives long, a TLS
context (35 ms) and no pooled connection on one that does not.  So the transport lives as
long as the worker and a light client is opened over it for each generation
(``huggingface_hub.set_async_client_factory``).

The transport is aiohttp's, whose HTTP parser is C, and it gives the caller the events of a
stream as bytes (:attr:`Exchange.on_data`); huggingface_hub makes the call, and sees nothing of
its answer.  Per token that is a quarter of the way through five layers of generators and two of
dataclasses, and what nobody can read is said in words of ours, with what was seen.
"""

import asyncio
import contextvars
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp
import httpx2
import yarl
from huggingface_hub import set_async_client_factory
from pydantic_core import from_json, to_json

from genqueue.no_proxy import proxy_for
from genqueue_worker.resources import lack_of
from genqueue_worker.upstream.connections import FloodError, open_session, sending, tls_context
from genqueue_worker.upstream.errors.answers import Form, foreign_charset, form_of, no_events, unreadable
from genqueue_worker.upstream.errors.responses import error_facts, redirect_facts
from genqueue_worker.upstream.event_stream import DONE, EventStream, FieldError, StreamTooLongError
from genqueue_worker.upstream.faults import LACK, UpstreamError, UpstreamFacts
from genqueue_worker.upstream.peers import PATIENCE, Patience

_ERROR_BODY_LIMIT_BYTES = 64 * 1024
_MOST_UNASKED_BYTES = 1_000_000
_MOST_UNASKED_EVENTS = 1_000
_IDLE_LINES_PER_EVENT = 8
_MORE_IDLE_LINES = 10_000
"""An event may come with a name, an id and comments; a proxy sends one a second while nothing comes."""
_HEARTBEATS = frozenset({b"ping", b"heartbeat", b"keepalive", b"keep-alive", b"keep_alive"})
"""Names of events that say nothing, whatever their data (the time, for one)."""
_STEP_BYTES = 16 * 1024
"""Of one read, which the kernel may make far larger, so much is read before others have their turn."""
_DONE_PATIENCE_S = 0.5


class Answered(Exception):
    """Ends a call whose answer, in one piece, was read: huggingface_hub has nothing to add."""


async def _no_pause() -> None:
    pass


@dataclass
class Exchange:
    """One HTTP call as its caller sees it.

    Attributes:
        on_data: is given the data of each server-sent event; False if that was the last one.  huggingface_hub sees
            none of them.
        on_whole: is given an answer of JSON that is no event stream.
        is_whole: whether that is what was asked for; then Answered is raised behind it.
        after_read: awaited after each read; the caller's way to see what came of it, and to slow the server down.
        most_bytes: of one event, or of an answer that is none of events.
        most_events: of one answer.
        headers: the response's ``x-*`` headers, lower case; filled in when they come.
        charset: what the answer declares to be written in, if that is not UTF-8, which it is read as.
        is_answered: whether the server has accepted the call.
        traceparent: of the span that the server's own are to be children of, if there is one.
        more_fields: what the request's JSON says besides what huggingface_hub put there.
    """

    on_data: Callable[[bytes], bool]
    on_whole: Callable[[bytes], None]
    is_whole: bool = False
    after_read: Callable[[], Awaitable[None]] = _no_pause
    most_bytes: int = _MOST_UNASKED_BYTES
    most_events: int = _MOST_UNASKED_EVENTS
    headers: dict[str, str] = field(default_factory=dict)
    charset: str | None = None
    is_answered: bool = False
    traceparent: str | None = None
    more_fields: Mapping[str, Any] = field(default_factory=dict)


current_exchange: contextvars.ContextVar[Exchange | None] = contextvars.ContextVar("current_exchange")
"""Of the call that is made; None, or none, where no caller listens."""


@contextmanager
def exchanging() -> Iterator[None]:
    """Around a call, which may set its exchange: what comes behind it, or runs beside it, has none of that."""
    token = current_exchange.set(None)
    try:
        yield
    finally:
        current_exchange.reset(token)


_OF_THE_WIRE = (aiohttp.ClientError, OSError)
"""Errors of aiohttp and of what is below it; TimeoutError is an OSError."""


def _as_httpx2(error: Exception, request: httpx2.Request | None) -> httpx2.HTTPError:
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


class _Body(httpx2.AsyncByteStream):
    def __init__(self, upstream: aiohttp.ClientResponse, most_bytes: int) -> None:
        self.upstream = upstream
        self.beginning = b""
        self._most_bytes = most_bytes

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        size_bytes = 0
        while True:
            try:
                data = await self.upstream.content.readany()
            except _OF_THE_WIRE as error:
                raise _as_httpx2(error, None) from error
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


class _Response(httpx2.Response):
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
                except _OF_THE_WIRE as error:
                    raise _as_httpx2(error, self.request) from error
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

    async def _begins_with_events(self, exchange: Exchange, body: "_Body") -> bool:
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


class Transport(httpx2.AsyncBaseTransport):
    """aiohttp under httpx2's interface; outlives the clients that are opened over it.

    Proxy variables are honoured, ``~/.netrc`` is not: tokens come from the settings alone.
    Certificates are read here, once.

    Args:
        patience: with a peer that does not answer on the way.
    """

    def __init__(self, patience: Patience = PATIENCE) -> None:
        context = tls_context()
        self._session = open_session(patience, context, is_pool=True)
        self._once = open_session(patience, context, is_pool=False)
        self._proxies = urllib.request.getproxies()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; the response's body is still to be read."""
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        limits: dict[str, Any] = request.extensions.get("timeout", {})
        headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers.raw]
        body = b"".join([part async for part in request.stream])
        exchange = current_exchange.get(None)
        if exchange is not None and exchange.traceparent is not None:
            headers.append(("traceparent", exchange.traceparent))
        if exchange is not None and exchange.more_fields and request.method == "POST":
            body = to_json({**from_json(body), **exchange.more_fields})
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        try:
            upstream = await self._sent(
                request.method,
                # httpx2 has made a header of the address's user and password already.
                yarl.URL(str(request.url.copy_with(userinfo=b"")), encoded=True),
                data=body,
                headers=headers,
                allow_redirects=False,
                proxy=self._proxy(request.url),
                timeout=aiohttp.ClientTimeout(sock_connect=limits.get("connect"), sock_read=limits.get("read")),
            )
        except FloodError as error:
            raise UpstreamError(UpstreamFacts(str(error), error_type="generation")) from error
        except (*_OF_THE_WIRE, RuntimeError, MemoryError) as error:
            if lack := lack_of(error):
                raise UpstreamError(UpstreamFacts(lack, error_type=LACK)) from error
            if not isinstance(error, _OF_THE_WIRE):
                raise
            raise _as_httpx2(error, request) from error
        answer = _Body(upstream, _MOST_UNASKED_BYTES if exchange is None else exchange.most_bytes)
        return _Response(
            upstream.status,
            headers=upstream.raw_headers,
            stream=answer,
            request=request,
            extensions={
                "http_version": b"HTTP/1.1",
                "reason_phrase": (upstream.reason or "").encode("latin-1", "replace"),
                "genqueue_body": answer,
            },
        )

    async def _sent(self, *where: Any, **options: Any) -> aiohttp.ClientResponse:
        """The answer's head; where a connection of an earlier call was found closed, by way of a fresh one.

        408 there says the same: a proxy waited for the next request, and gave up as it came (RFC 9110, 15.5.9, lets
        a client repeat it on a new connection).
        """
        stale: Exception | None = None
        with sending() as request:
            try:
                answer = await self._session.request(*where, **options)
            except _OF_THE_WIRE as error:
                if not request.is_stale(error):
                    raise
                stale = error
            else:
                if answer.status != HTTPStatus.REQUEST_TIMEOUT or not request.is_reused:
                    return answer
                answer.close()
        try:
            return await self._once.request(*where, **options)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if stale is None or lack_of(error):
                raise
            # Nobody is there now.  What is known is that a connection broke with a call on it: that may have been
            # its cause, and where nobody was reached none is.
            raise stale from error

    def _proxy(self, url: httpx2.URL) -> str | None:
        return proxy_for(url.scheme, url.host, url.port, self._proxies)

    async def aclose(self) -> None:
        """A client over this transport was closed; the transport stays."""

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()
        await self._once.close()


async def _on_response(response: httpx2.Response) -> None:
    headers = {name.lower(): value for name, value in response.headers.items()}
    # A few bytes can unpack to any number of them, and what is packed is no live stream.
    codings = (coding.strip() for coding in headers.get("content-encoding", "").split(","))
    encoding = ", ".join(coding for coding in codings if coding.lower() not in {"", "identity"})
    exchange = current_exchange.get(None)
    if exchange is not None:
        exchange.headers = {name: value for name, value in headers.items() if name.startswith("x-")}
        exchange.is_answered = response.status_code < 300
    if 300 <= response.status_code < 400:
        # Following it would take the call, with the prompt and the settings' headers, wherever the server likes.
        raise UpstreamError(redirect_facts(response.status_code, str(response.url), headers.get("location", "")))
    if response.status_code >= 400:
        # Raised here, not left to huggingface_hub: it drops Retry-After, cannot read a chunked
        # body of a streaming call, and answers one kind of 400 by calling again without end.
        body = b"" if encoding else await _beginning(response.extensions["genqueue_body"])
        raise UpstreamError(error_facts(response.status_code, response.reason_phrase, headers, body))
    if encoding:
        message = f"the server's answer is packed ({encoding[:100]}), which it was asked not to do"
        raise UpstreamError(UpstreamFacts(message, error_type="generation"))


async def _beginning(body: _Body) -> bytes:
    """As much of a body as an error's words may take."""
    beginning = bytearray()
    async with aclosing(body.__aiter__()) as parts:
        async for data in parts:
            beginning += data
            if len(beginning) >= _ERROR_BODY_LIMIT_BYTES:
                break
    return bytes(beginning[:_ERROR_BODY_LIMIT_BYTES])


def open_transport(patience: Patience = PATIENCE) -> Transport:
    """Make the worker's transport and have huggingface_hub use it; whoever opened it closes it."""
    transport = Transport(patience)

    def light_client() -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            transport=transport,
            event_hooks={"response": [_on_response]},
            headers={"accept-encoding": "identity"},
            follow_redirects=False,
            timeout=None,
        )

    set_async_client_factory(light_client)
    return transport
