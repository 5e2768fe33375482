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

import urllib.request
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

import aiohttp
import httpx2
import yarl
from huggingface_hub import set_async_client_factory
from pydantic_core import from_json, to_json

from genqueue.no_proxy import proxy_for
from genqueue_worker.resources import lack_of
from genqueue_worker.upstream.errors.responses import error_facts, redirect_facts
from genqueue_worker.upstream.faults import LACK, UpstreamError, UpstreamFacts
from genqueue_worker.upstream.http.answer import OF_THE_WIRE, Body, Response, as_httpx2
from genqueue_worker.upstream.http.connections import FloodError, open_session, sending, tls_context
from genqueue_worker.upstream.http.exchange import MOST_UNASKED_BYTES, current_exchange
from genqueue_worker.upstream.http.peers import PATIENCE, Patience

_ERROR_BODY_LIMIT_BYTES = 64 * 1024


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
        except (*OF_THE_WIRE, RuntimeError, MemoryError) as error:
            if lack := lack_of(error):
                raise UpstreamError(UpstreamFacts(lack, error_type=LACK)) from error
            if not isinstance(error, OF_THE_WIRE):
                raise
            raise as_httpx2(error, request) from error
        answer = Body(upstream, MOST_UNASKED_BYTES if exchange is None else exchange.most_bytes)
        return Response(
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
            except OF_THE_WIRE as error:
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


async def _beginning(body: Body) -> bytes:
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
